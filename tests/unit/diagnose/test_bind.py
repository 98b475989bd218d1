"""Causes of a refused bind."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pyiommufd import Group, GroupNotViableError, HostDevice, IoctlError
from pyiommufd.diagnose import bind
from pyiommufd.diagnose.bind import bind_error
from pyiommufd.host import rows
from pyiommufd.host.discovery.devices import from_sys_path
from pyiommufd.host.discovery.groups import ReservedRegion
from pyiommufd.host.holders import Holder
from tests.fake_sysfs import FakeSysfs


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
    error = bind_error(errno.EPERM, TARGET, 9, token=False)
    assert isinstance(error, GroupNotViableError)
    assert error.blockers == (blocker,)
    assert "0000:02:03.0" in error.causes[0].summary
    assert "nvme" in error.causes[0].summary
    assert "plan_claim(['0000:02:01.0'])" in error.causes[0].fix
    assert "0000:02:04.0" not in error.causes[0].summary


def test_owner_of_a_viable_group_is_named(host_facts: dict[str, object]) -> None:
    host_facts["holders"] = (Holder(4711, "qemu", "/dev/vfio/devices/vfio1", "fd 20"),)
    error = bind_error(errno.EPERM, TARGET, 9, token=False)
    assert not isinstance(error, GroupNotViableError)
    assert "4711 (qemu)" in error.causes[0].evidence


def test_interrupts_that_are_not_remapped_come_first(
    host_facts: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bind, "unsafe_interrupts_allowed", lambda: False)
    for isolated, evidence in ((False, "/proc/interrupts"), (None, "no other cause"), (True, "no other cause")):
        monkeypatch.setattr(bind, "interrupts_isolated", lambda known=isolated: known)
        (cause,) = bind_error(errno.EPERM, TARGET, 9, token=False).causes
        assert evidence in cause.evidence
        assert "allow_unsafe_interrupts" in cause.fix
    monkeypatch.setattr(bind, "interrupts_isolated", lambda: False)
    host_facts["group"] = Group(5, "DMA", (TARGET, member("0000:02:03.0", "nvme")), ())
    error = bind_error(errno.EPERM, TARGET, 9, token=False)
    assert isinstance(error, GroupNotViableError)
    assert ["interrupts" in cause.summary for cause in error.causes] == [True, False]
    # Where they are allowed not to be isolated, that is no reason.
    monkeypatch.setattr(bind, "unsafe_interrupts_allowed", lambda: True)
    assert [cause.summary[:12] for cause in bind_error(errno.EPERM, TARGET, 9, token=False).causes] == ["0000:02:03.0"]


def test_second_open_is_named(host_facts: dict[str, object]) -> None:
    host_facts["holders"] = (Holder(4711, "qemu", "/dev/vfio/devices/vfio0", "fd 20"),)
    (cause,) = bind_error(errno.EINVAL, TARGET, 9, token=False).causes
    assert cause.summary == "another process has the device open"
    assert "4711" in cause.evidence


def test_process_is_named_once(host_facts: dict[str, object]) -> None:
    host_facts["holders"] = tuple(
        Holder(4711, "qemu", "/dev/vfio/devices/vfio0", how) for how in ("fd 20", "fd 21", "mapping")
    )
    (cause,) = bind_error(errno.EINVAL, TARGET, 9, token=False).causes
    assert cause.evidence == "pid 4711 (qemu) holds /dev/vfio/devices/vfio0 by fd 20, fd 21, mapping"


def test_legacy_user_is_named(host_facts: dict[str, object]) -> None:
    host_facts["holders"] = (
        Holder(1, "a", "/dev/vfio/5", "fd 3"),
        Holder(2, "b", "/dev/vfio/devices/vfio0", "fd 3"),
    )
    (cause,) = bind_error(errno.EBUSY, TARGET, 9, token=False).causes
    assert "pid 1" in cause.evidence


def test_firmwares_own_mappings_are_named(host_facts: dict[str, object]) -> None:
    host_facts["group"] = Group(
        5, "DMA", (TARGET,), (MSI, ReservedRegion(0x1000, 0x1FFF, "direct"), ReservedRegion(0, 1, "direct-relaxable"))
    )
    (cause,) = bind_error(errno.EINVAL, TARGET, 9, token=False).causes
    assert "0x1000..0x1fff" in cause.evidence


def test_token(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Holder] = []
    monkeypatch.setattr(rows, "holders", lambda *devices: held)
    folder = fake.pci("0000:01:00.0", driver="vfio-pci", group=1, cdev=0, sriov_totalvfs="2")
    function = fake.pci("0000:01:10.0", driver="vfio-pci", group=2, cdev=1)
    fake.link(f"{folder.relative_to(fake.root)}/virtfn0", function)
    fake.link(f"{function.relative_to(fake.root)}/physfn", folder)
    plain = fake.pci("0000:01:00.1", driver="vfio-pci", group=3, cdev=2)
    physical, virtual, other = map(from_sys_path, (folder, function, plain))

    (cause,) = bind_error(errno.EACCES, virtual, 9, token=False).causes
    assert cause.summary == f"the VF token is missing: its physical function {physical} is on vfio-pci"
    assert cause.evidence == f"nobody is seen to hold {physical}"
    assert f"bind {physical} first with a token" in cause.fix
    held.append(Holder(7, "qemu", "/dev/vfio/devices/vfio0", "fd 3"))
    (cause,) = bind_error(errno.EACCES, virtual, 9, token=True).causes
    assert cause.summary.startswith("the VF token is wrong: ")
    assert "pid 7" in cause.evidence
    assert "set_vf_token()" in cause.fix
    assert "--vf-token" in cause.command

    (cause,) = bind_error(errno.EACCES, physical, 9, token=True).causes
    assert cause.summary == "the VF token is wrong: virtual functions of the device are in use"
    held.clear()
    (cause,) = bind_error(errno.EACCES, physical, 9, token=False).causes
    assert (cause.summary[:24], cause.evidence) == ("the VF token is missing:", f"it has {virtual}")

    (cause,) = bind_error(errno.EINVAL, other, 9, token=True).causes
    assert (cause.evidence, cause.fix) == (f"{other} has no SR-IOV", "bind without token=")
    fake.link(f"{plain.relative_to(fake.root)}/physfn", fake.pci("0000:02:00.0", driver="nvme"))
    (cause,) = bind_error(errno.EINVAL, other, 9, token=True).causes
    assert cause.evidence == f"{other} is a virtual function of 0000:02:00.0, which is on nvme"
    # Nothing is seen: an older kernel, perhaps.
    assert "kernel from before" in bind_error(errno.EINVAL, virtual, 9, token=True).causes[0].summary
    assert not any("token" in cause.summary for cause in bind_error(errno.EINVAL, other, 9, token=False).causes)


@pytest.mark.parametrize("code", [errno.ENODEV, errno.EAGAIN, errno.EBADF, errno.EPERM])
def test_errno_is_kept_where_nothing_is_found(host_facts: dict[str, object], code: int) -> None:
    host_facts["group"] = None
    error = bind_error(code, TARGET, 9, token=False)
    assert isinstance(error, IoctlError)
    assert (error.errno, error.request, error.target) == (code, "VFIO_DEVICE_BIND_IOMMUFD", "0000:02:01.0")
