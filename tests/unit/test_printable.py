"""What is not printable is shown as its number: in text, and in all that carries a sentence."""

from __future__ import annotations

import dataclasses
import errno
import pickle
import traceback

import pytest

from pyiommufd import ClaimError, CloseError, DeviceNotFoundError, InUseError, RegionFaultError
from pyiommufd.errors import Cause, ClaimRefusedError, IOMMUFDError, Refusal, ioctl_error
from pyiommufd.host.checks.finding import Finding, State
from pyiommufd.host.holders import Holder
from pyiommufd.host.persistent.identity import Identity
from pyiommufd.printable import printable
from pyiommufd.testing.errors import GuestError
from tests.escapes import CONTROL_TEXT, invisible


def test_numbers() -> None:
    assert printable("plain é 中") == "plain é 中"
    assert printable("\x1b\n\x85\u2028\U000e0001\udcff") == "\\x1b\\x0a\\x85\\u2028\\U000e0001\\xff"
    assert printable("a\nb\r", keep="\n") == "a\nb\\x0d"
    assert printable(printable(CONTROL_TEXT)) == printable(CONTROL_TEXT)


@pytest.mark.parametrize(
    "said",
    [
        Refusal(CONTROL_TEXT, CONTROL_TEXT, CONTROL_TEXT),
        Cause(CONTROL_TEXT, CONTROL_TEXT, CONTROL_TEXT),
        Finding("iommu", State.OK, CONTROL_TEXT, CONTROL_TEXT, CONTROL_TEXT),
        Holder(1, CONTROL_TEXT, CONTROL_TEXT, "fd 3"),
        Identity("x", ("1234", "11e8"), "pci0000:00/01.0", CONTROL_TEXT),
    ],
    ids=lambda said: type(said).__name__,
)
def test_sentences_are_one_line(said: object) -> None:
    assert str(said).isprintable()
    assert "end" in str(said)
    assert pickle.loads(pickle.dumps(said)) == said  # noqa: S301


def test_refusal_is_made_anew_with_what_is_printable() -> None:
    refusal = dataclasses.replace(Refusal("x", "mounted", "y"), reason=CONTROL_TEXT)
    assert refusal.reason == printable(CONTROL_TEXT)


@pytest.mark.parametrize(
    "error",
    [
        ClaimError(CONTROL_TEXT),
        DeviceNotFoundError(CONTROL_TEXT),
        InUseError(CONTROL_TEXT),
        GuestError(CONTROL_TEXT),
        RegionFaultError(errno.EIO, CONTROL_TEXT),
        ioctl_error("IOMMU_IOAS_MAP", errno.EINVAL, CONTROL_TEXT, (Cause(CONTROL_TEXT),)),
        CloseError(CONTROL_TEXT, (ValueError(CONTROL_TEXT), ClaimError(CONTROL_TEXT))),
        ClaimRefusedError((Refusal("x", "mounted", CONTROL_TEXT),)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_text_of_exceptions(error: IOMMUFDError) -> None:
    error.add_note(CONTROL_TEXT)
    assert invisible(str(error)) == invisible(repr(error)) == ""
    assert invisible("".join(traceback.format_exception(error))) == ""
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301


def test_refused_claim_has_a_line_for_each_refusal() -> None:
    text = str(ClaimRefusedError((Refusal("x", "mounted", CONTROL_TEXT), Refusal("y", "swap", CONTROL_TEXT))))
    assert len(text.splitlines()) == 4  # the last says how they are overridden
