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
from tests.escapes import NASTY, invisible


def test_numbers() -> None:
    assert printable("plain é 中") == "plain é 中"
    assert printable("\x1b\n\x85\u2028\U000e0001\udcff") == "\\x1b\\x0a\\x85\\u2028\\U000e0001\\xff"
    assert printable("a\nb\r", keep="\n") == "a\nb\\x0d"
    assert printable(printable(NASTY)) == printable(NASTY)


@pytest.mark.parametrize(
    "said",
    [
        Refusal(NASTY, NASTY, NASTY),
        Cause(NASTY, NASTY, NASTY),
        Finding("iommu", State.OK, NASTY, NASTY, NASTY),
        Holder(1, NASTY, NASTY, "fd 3"),
        Identity("x", ("1234", "11e8"), "pci0000:00/01.0", NASTY),
    ],
    ids=lambda said: type(said).__name__,
)
def test_sentences_are_one_line(said: object) -> None:
    assert str(said).isprintable()
    assert "end" in str(said)
    assert pickle.loads(pickle.dumps(said)) == said  # noqa: S301


def test_refusal_is_made_anew_with_what_is_printable() -> None:
    refusal = dataclasses.replace(Refusal("x", "mounted", "y"), reason=NASTY)
    assert refusal.reason == printable(NASTY)


@pytest.mark.parametrize(
    "error",
    [
        ClaimError(NASTY),
        DeviceNotFoundError(NASTY),
        InUseError(NASTY),
        GuestError(NASTY),
        RegionFaultError(errno.EIO, NASTY),
        ioctl_error("IOMMU_IOAS_MAP", errno.EINVAL, NASTY, (Cause(NASTY),)),
        CloseError(NASTY, (ValueError(NASTY), ClaimError(NASTY))),
        ClaimRefusedError((Refusal("x", "mounted", NASTY),)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_text_of_exceptions(error: IOMMUFDError) -> None:
    error.add_note(NASTY)
    assert invisible(str(error)) == invisible(repr(error)) == ""
    assert invisible("".join(traceback.format_exception(error))) == ""
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301


def test_refused_claim_has_a_line_for_each_refusal() -> None:
    text = str(ClaimRefusedError((Refusal("x", "mounted", NASTY), Refusal("y", "swap", NASTY))))
    assert len(text.splitlines()) == 3
