"""Vectors: more than the device can be given, and what that says."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pyiommufd import Device, VectorsUnavailableError
from tests.guest.devices.factories import Binder

XHCI = (0x1033, 0x0194)


@pytest.fixture
def xhci(bind: Binder) -> Device:
    if "intremap=off" not in Path("/proc/cmdline").read_text():
        pytest.skip("interrupts are remapped here, and a device gets all that it has")
    return bind(*XHCI)


def test_fewer_than_asked_for(xhci: Device) -> None:
    """Without remapping Linux gives a device one MSI. The kernel says so, and has then enabled none."""
    msi = xhci.interrupts.msi
    assert msi.count == 16
    with pytest.raises(VectorsUnavailableError, match="16 vectors asked for, 1 available") as caught:
        msi.enable(16)
    assert caught.value.available == 1
    assert caught.value.errno == errno.ENOSPC
    assert not msi.enabled
    with pytest.raises(VectorsUnavailableError):
        msi.enable(16, minimum=2)
    vectors = msi.enable(16, minimum=1)
    assert len(vectors) == 1
    vectors[0].trigger()
    assert vectors[0].take() == 1


def test_refused_resize_leaves_what_was(xhci: Device) -> None:
    msi = xhci.interrupts.msi
    (vector,) = msi.enable()
    with pytest.raises(VectorsUnavailableError):
        msi.resize(4)
    assert msi.vectors == (vector,)
    vector.trigger()
    assert vector.take() == 1
