"""Why interrupts could not be enabled."""

from __future__ import annotations

import errno

import pytest

from pyiommufd.diagnose.interrupts import set_irqs_error


def test_another_type_is_on() -> None:
    error = set_irqs_error(errno.EINVAL, "<IRQ MSIX of d>", "MSIX", ["REQ", "INTX"])
    (cause,) = error.causes
    assert "INTX is on" in cause.summary
    assert cause.fix == "disable it first: device.interrupts.intx.disable()"
    assert str(error).startswith("VFIO_DEVICE_SET_IRQS on <IRQ MSIX of d>: EINVAL")


@pytest.mark.parametrize(
    ("code", "name", "enabled"),
    [(errno.EINVAL, "MSIX", ["REQ", "ERR"]), (errno.EINVAL, "REQ", ["MSI"]), (errno.ENODEV, "MSI", ["INTX"])],
)
def test_nothing_is_said_where_nothing_is_known(code: int, name: str, enabled: list[str]) -> None:
    assert set_irqs_error(code, "t", name, enabled).causes == ()


@pytest.mark.parametrize(("code", "word"), [(errno.ENODEV, "not connected"), (errno.EBUSY, "shared")])
def test_line_that_cannot_be_had(code: int, word: str) -> None:
    (cause,) = set_irqs_error(code, "t", "INTX", []).causes
    assert word in cause.summary
    assert "MSI" in cause.fix
