"""Causes of a refused bind."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pyiommufd import Group, GroupNotViableError, HostDevice, IoctlError
from pyiommufd.diagnose import bind
from pyiommufd.diagnose.bind import bind_error
from pyiommufd.host import rows
from pyiommufd.host.discovery.groups import ReservedRegion
from pyiommufd.host.holders import Holder


def member(name: str, driver: str | None) -> HostDevice:
    on_vfio = driver == "vfio-pci"
    return HostDevice(name, "pci", Path("/sys/devices") / name, 1, 2, 0x020000, driver, 5, None, None, None, on_vfio)


TARGET = member("0000:02:01.0", "vfio-pci")
MSI = ReservedRegion(0xFEE00000, 0xFEEFFFFF, "msi")


@pytest.fixture
def host_facts(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A machine with a group of the test's choice, and holders."""
    state: dict[str, object] = {"group": Group(5, "DMA", (TARGET,), (MSI,)), "holders": ()}
    monkeypatch.setattr(HostDevice, "group", property(lambda device: state["group"]))
    monkeypatch.setattr(rows, "holders", lambda *devices: state["holders"])
    return state


def test_members_on_host_drivers_are_named(host_facts: dict[str, object]) -> None:
    blocker = member("0000:02:03.0", "nvme")
    host_facts["group"] = Group(5, "DMA", (TARGET, blocker, member("0000:02:04.0", None)), ())
    error = bind_error(errno.EPERM, TARGET, 9)
    assert isinstance(error, GroupNotViableError)
    assert error.blockers == (blocker,)
    assert "0000:02:03.0" in error.causes[0].summary
    assert "nvme" in error.causes[0].summary
    assert "plan_claim(['0000:02:01.0'])" in error.causes[0].fix
    assert "0000:02:04.0" not in error.causes[0].summary


def test_owner_of_a_viable_group_is_named(host_facts: dict[str, object]) -> None:
    host_facts["holders"] = (Holder(4711, "qemu", "/dev/vfio/devices/vfio1", "fd 20"),)
    error = bind_error(errno.EPERM, TARGET, 9)
    assert not isinstance(error, GroupNotViableError)
    assert "4711 (qemu)" in error.causes[0].evidence


def test_interrupts_that_are_not_remapped_come_first(
    host_facts: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bind, "unsafe_interrupts_allowed", lambda: False)
    for isolated, evidence in ((False, "/proc/interrupts"), (None, "no other cause"), (True, "no other cause")):
        monkeypatch.setattr(bind, "interrupts_isolated", lambda known=isolated: known)
        (cause,) = bind_error(errno.EPERM, TARGET, 9).causes
        assert evidence in cause.evidence
        assert "allow_unsafe_interrupts" in cause.fix
    monkeypatch.setattr(bind, "interrupts_isolated", lambda: False)
    host_facts["group"] = Group(5, "DMA", (TARGET, member("0000:02:03.0", "nvme")), ())
    error = bind_error(errno.EPERM, TARGET, 9)
    assert isinstance(error, GroupNotViableError)
    assert ["interrupts" in cause.summary for cause in error.causes] == [True, False]
    # Where they are allowed not to be isolated, that is no reason.
    monkeypatch.setattr(bind, "unsafe_interrupts_allowed", lambda: True)
    assert [cause.summary[:12] for cause in bind_error(errno.EPERM, TARGET, 9).causes] == ["0000:02:03.0"]


def test_second_open_is_named(host_facts: dict[str, object]) -> None:
    host_facts["holders"] = (Holder(4711, "qemu", "/dev/vfio/devices/vfio0", "fd 20"),)
    (cause,) = bind_error(errno.EINVAL, TARGET, 9).causes
    assert "another fd" in cause.summary
    assert "4711" in cause.evidence


def test_legacy_user_is_named(host_facts: dict[str, object]) -> None:
    host_facts["holders"] = (
        Holder(1, "a", "/dev/vfio/5", "fd 3"),
        Holder(2, "b", "/dev/vfio/devices/vfio0", "fd 3"),
    )
    (cause,) = bind_error(errno.EBUSY, TARGET, 9).causes
    assert "pid 1" in cause.evidence


def test_firmwares_own_mappings_are_named(host_facts: dict[str, object]) -> None:
    host_facts["group"] = Group(
        5, "DMA", (TARGET,), (MSI, ReservedRegion(0x1000, 0x1FFF, "direct"), ReservedRegion(0, 1, "direct-relaxable"))
    )
    (cause,) = bind_error(errno.EINVAL, TARGET, 9).causes
    assert "0x1000..0x1fff" in cause.evidence


def test_token(host_facts: dict[str, object]) -> None:
    (cause,) = bind_error(errno.EACCES, TARGET, 9).causes
    assert "token" in cause.summary


@pytest.mark.parametrize("code", [errno.ENODEV, errno.EAGAIN, errno.EBADF, errno.EPERM])
def test_errno_is_kept_where_nothing_is_found(host_facts: dict[str, object], code: int) -> None:
    host_facts["group"] = None
    error = bind_error(code, TARGET, 9)
    assert isinstance(error, IoctlError)
    assert (error.errno, error.request, error.target) == (code, "VFIO_DEVICE_BIND_IOMMUFD", "0000:02:01.0")
