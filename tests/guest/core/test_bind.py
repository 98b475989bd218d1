"""Bind: what it changes, and what its refusals say."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyiommufd import (
    IOMMUFD,
    AccessDeniedError,
    ChangeKind,
    Claim,
    GroupNotViableError,
    HostDevice,
    NotFoundError,
)
from pyiommufd.host import drivers
from pyiommufd.testing.provision.kernels import release_order

UNSAFE_INTERRUPTS = Path("/sys/module/iommufd/parameters/allow_unsafe_interrupts")


@pytest.mark.long
def test_bind_takes_the_group_and_close_gives_it_back(lone_claim: Claim, lone: HostDevice, iommufd: IOMMUFD) -> None:
    for _ in range(2):
        device = iommufd.bind(lone)
        assert device.bind_change.kind is ChangeKind.FIRST
        assert device.bind_change.devices == (lone,)
        assert not device.bus_master
        assert list(iommufd.devices) == [device]
        device.close()
        assert list(iommufd.devices) == []


def test_a_device_that_nobody_claimed_is_refused_with_the_way_out(lone: HostDevice, iommufd: IOMMUFD) -> None:
    with pytest.raises(NotFoundError, match="plan_claim") as caught:
        iommufd.bind(lone)
    assert lone.name in str(caught.value)


def test_interrupts_that_are_not_isolated_are_named_and_the_fix_works(
    kind: str, lone_claim: Claim, lone: HostDevice, iommufd: IOMMUFD
) -> None:
    """VT-d and Arm's ITS isolate them, virtio does not; AMD's do for Linux 6.12 and do not for 7.3.

    Where they may not be, the machine was booted with the exception.
    """
    before = UNSAFE_INTERRUPTS.read_text()
    UNSAFE_INTERRUPTS.write_text("0")
    try:
        isolating = (
            ("intel", "smmuv3", "amd") if release_order(os.uname().release)[:2] <= (6, 12) else ("intel", "smmuv3")
        )
        if kind.startswith(isolating):
            iommufd.bind(lone).close()
            return
        with pytest.raises(AccessDeniedError) as caught:
            iommufd.bind(lone)
        assert caught.value.errno == errno.EPERM
        assert not isinstance(caught.value, GroupNotViableError)
        (cause,) = caught.value.causes
        assert "interrupts" in cause.summary
        assert f"echo 1 > {UNSAFE_INTERRUPTS}" in cause.fix
        UNSAFE_INTERRUPTS.write_text("1")
        iommufd.bind(lone).close()
    finally:
        UNSAFE_INTERRUPTS.write_text(before)


@pytest.mark.long
def test_a_member_on_a_host_driver_is_named(
    shared_claim: Claim, shared_edus: tuple[HostDevice, ...], host_driven: HostDevice, iommufd: IOMMUFD
) -> None:
    away = host_driven.refreshed()
    drivers.unbind(away)
    drivers.set_driver_override(away, None)
    drivers.bind(away, "virtio-pci")
    try:
        with pytest.raises(GroupNotViableError) as caught:
            iommufd.bind(shared_edus[0])
        assert caught.value.errno == errno.EPERM
        assert [blocker.name for blocker in caught.value.blockers] == [host_driven.name]
        assert "virtio-pci" in str(caught.value)
    finally:
        drivers.unbind(away.refreshed())
        drivers.set_driver_override(away, "vfio-pci")
        drivers.bind(away, "vfio-pci")
