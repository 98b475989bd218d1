"""Mediated devices: made, found, bound and used by the same objects as others, and removed."""

from __future__ import annotations

import errno
import json
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pyiommufd import (
    IOAS,
    IOMMUFD,
    ChangeKind,
    ClaimError,
    ClaimRefusedError,
    DeviceNotFoundError,
    DMABuffer,
    HostDevice,
    IoctlError,
    Monitor,
    NotFoundError,
    RegionIndex,
    UnsupportedError,
    Verdict,
    find_device,
    list_devices,
    plan_claim,
)
from pyiommufd.cli.group import cli
from pyiommufd.diagnose.explain import explain, look
from pyiommufd.host.claims.transaction import exclusive_access
from pyiommufd.host.holders import holders
from pyiommufd.host.mdev import create_mdev, mdev_type, mdev_types, remove_mdev
from pyiommufd.host.overview.details import device_details
from tests.guest.devices.factories import Binder
from tests.guest.devices.mediated import Maker
from tests.guest.devices.mediated import make as make
from tests.guest.devices.mediated import sample_drivers as sample_drivers
from tests.patience import patience, until

EDU = (0x1234, 0x11E8)
TX = RX = 0
IER, IER_RECEIVED = 1, 0x01
FCR, FCR_FIFO = 2, 0x01
SCRATCH = 7
"""Registers of an 8250."""


@pytest.fixture
def mtty(make: Maker) -> HostDevice:
    """A device with two serial ports."""
    return make("mtty", "mtty-2")


def command(*words: str, status: int = 0) -> Result:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == status, done.output
    return done


# Made, found and removed


def test_types_of_the_parents(make: Maker) -> None:
    types = {kind.id: kind for kind in mdev_types()}
    assert {"mtty-1", "mtty-2", "mdpy-vga", "mbochs-small"} <= set(types)
    assert {kind.device_api for kind in types.values()} == {"vfio-pci"}
    assert types["mtty-2"].name == "Dual port serial"
    assert "640x480" in types["mdpy-vga"].description
    before = types["mtty-2"].available
    device = make("mtty", "mtty-2")
    (now,) = (kind for kind in mdev_types("mtty") if kind.id == "mtty-2")
    assert (now.available, now.devices) == (before - 1, (device,))
    assert mdev_type(device) == now
    assert mdev_types(now.parent) == mdev_types(now.parent.sys_path) == mdev_types("mtty")


def test_found_by_all_its_names(mtty: HostDevice) -> None:
    uuid.UUID(mtty.name)
    assert mtty.is_mediated
    assert mtty.on_vfio
    assert mtty.vfio_cdev is not None
    for name in (mtty.name, mtty.name.upper(), mtty.vfio_cdev, Path(mtty.vfio_cdev).name, str(mtty.sys_path)):
        assert find_device(name) == mtty
    assert mtty in list_devices()
    assert mtty in list_devices("mdev")
    assert mtty.group is not None
    assert mtty.group.devices == (mtty,)
    assert mtty.group.viable


def test_uuid_of_another_one_is_refused(make: Maker, mtty: HostDevice) -> None:
    with pytest.raises(IoctlError, match="there is a mediated device of this UUID") as caught:
        create_mdev("mdpy", "mdpy-vga", mtty.name)
    assert caught.value.errno == errno.EEXIST
    name = uuid.uuid4()
    assert create_mdev("mtty", "mtty-1", name).name == str(name)


def test_parent_without_room(make: Maker) -> None:
    (kind,) = (kind for kind in mdev_types("mbochs") if kind.id == "mbochs-large")
    for _ in range(kind.available):
        make("mbochs", "mbochs-large")
    with pytest.raises(IoctlError, match="no room") as caught:
        make("mbochs", "mbochs-large")
    assert caught.value.errno == errno.ENOSPC


def test_types_and_parents_that_there_are_not(make: Maker) -> None:
    with pytest.raises(DeviceNotFoundError, match=r"mtty has no type 'mtty-3'; it has mtty-1, mtty-2"):
        make("mtty", "mtty-3")
    with pytest.raises(DeviceNotFoundError, match=r"no parent nothing; those of mediated devices: mbochs, mdpy, mtty"):
        make("nothing", "mtty-1")
    edu = next(one.name for one in list_devices("pci") if (one.vendor_id, one.device_id) == EDU)
    with pytest.raises(DeviceNotFoundError, match="makes no mediated devices"):
        make(edu, "mtty-1")
    with pytest.raises(DeviceNotFoundError, match="no mediated one"):
        remove_mdev(edu)
    with pytest.raises(ValueError, match="'x' is not a UUID"):
        create_mdev("mtty", "mtty-1", "x")


def test_removal_is_refused_while_somebody_has_it_open(mtty: HostDevice, iommufd: IOMMUFD) -> None:
    device = iommufd.bind(mtty)
    with pytest.raises(
        ClaimRefusedError, match=rf"this process \(pid {os.getpid()}\) holds {mtty.vfio_cdev}"
    ) as caught:
        remove_mdev(mtty)
    assert [refusal.kind for refusal in caught.value.refusals] == ["held"]
    assert [holder.pid for holder in holders(mtty)] == [os.getpid()]
    device.close()
    remove_mdev(mtty)
    with pytest.raises(DeviceNotFoundError):
        find_device(mtty.name)
    assert not mtty.sys_path.exists()


def test_forced_removal_waits_for_the_user(mtty: HostDevice, iommufd: IOMMUFD) -> None:
    device = iommufd.bind(mtty)
    removal = threading.Thread(target=remove_mdev, args=(mtty,), kwargs={"force": ["held"]})
    removal.start()
    until(lambda: not (mtty.sys_path / "remove").exists(), "the removal has begun")
    assert removal.is_alive()
    device.close()
    removal.join(patience())
    assert not mtty.sys_path.exists()


def test_removal_that_takes_too_long_names_who_is_in_the_way(
    mtty: HostDevice, iommufd: IOMMUFD, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyiommufd.host.worker.SECONDS", 0.5)
    device = iommufd.bind(mtty)
    with pytest.raises(ClaimError, match=rf"not removed yet(.|\n)*\(pid {os.getpid()}\) holds /dev/vfio/devices"):
        remove_mdev(mtty, force=["held"])
    # Others are not kept waiting.
    with exclusive_access():
        assert mtty.sys_path.exists()
    device.close()
    until(lambda: not mtty.sys_path.exists(), "the device goes")


def test_removal_of_a_claimed_one_is_refused(mtty: HostDevice) -> None:
    with plan_claim(mtty).apply(), pytest.raises(ClaimRefusedError, match="claimed already"):
        remove_mdev(mtty)


def test_only_root_makes_one(make: Maker, in_child: Callable[[Callable[[], Any]], Any]) -> None:
    def refused() -> str:
        os.setuid(65534)
        try:
            create_mdev("mtty", "mtty-1")
        except ClaimError as error:
            return str(error)
        return ""

    assert "making mediated devices takes root" in in_child(refused)


def test_monitor_sees_it_come_and_go(make: Maker) -> None:
    with Monitor(["mdev"]) as monitor:
        device = make("mtty", "mtty-1")
        remove_mdev(device)
        seen = set()
        for event in monitor:
            assert (event.subsystem, event.name) == ("mdev", device.name)
            seen.add(event.action)
            if event.action == "remove":
                break
    assert {"add", "bind", "unbind", "remove"} <= seen


# What is said of it


def test_claim_has_nothing_to_move(mtty: HostDevice) -> None:
    plan = plan_claim(mtty)
    assert (plan.moves, plan.stays, plan.steps, plan.refusals) == ((), (mtty,), (), ())


def test_details_and_causes(mtty: HostDevice) -> None:
    details = device_details(mtty)
    assert details.mdev_type is not None
    assert (details.mdev_type.id, details.mdev_type.parent.name) == ("mtty-2", "mtty")
    assert (details.no_plan, details.uses) == ("", ())
    assert "mediated" in explain("GET_HW_INFO", errno.ENOENT, mtty)[0].summary
    # None of the reasons that an IOMMU gives for a refused bind can be one here.
    assert not look("BIND_IOMMUFD", errno.EPERM, mtty).found


# Bound and used


def test_serial_port_loops_back(mtty: HostDevice, iommufd: IOMMUFD) -> None:
    device = iommufd.bind(mtty)
    assert list(device.regions) == [RegionIndex.BAR0, RegionIndex.BAR1, RegionIndex.CONFIG]
    first, second = device.region(0), device.region(1)
    for text, port in ((b"pyiommufd", first), (b"iommufd", second)):
        port.write(FCR, bytes([FCR_FIFO]))
        for byte in text:
            port.write(TX, bytes([byte]))
    assert bytes(first.read(RX, 1)[0] for _ in range(9)) == b"pyiommufd"
    assert bytes(second.read(RX, 1)[0] for _ in range(7)) == b"iommufd"
    with pytest.raises(UnsupportedError, match="cannot be mapped"):
        first.map()
    # What is in the configuration space: HypothEtical serial ports.
    assert device.config.read16(0) == 0x4348
    device.reset()


def test_interrupts_reach_an_eventfd(mtty: HostDevice, iommufd: IOMMUFD) -> None:
    device = iommufd.bind(mtty)
    port = device.region(0)
    port.write(FCR, bytes([FCR_FIFO]))
    port.write(IER, bytes([IER_RECEIVED]))
    for irq in (device.interrupts.msi, device.interrupts.intx):
        (vector,) = irq.enable()
        assert vector.take() == 0
        port.write(TX, b"x")
        vector.wait(patience())
        assert port.read(RX, 1) == b"x"
        irq.disable()


def test_what_it_has_not(mtty: HostDevice, iommufd: IOMMUFD) -> None:
    device = iommufd.bind(mtty)
    with pytest.raises(UnsupportedError, match="no REQ"):
        device.watch_removal()
    with pytest.raises(UnsupportedError, match="no MSIX"):
        device.interrupts.msix.enable()
    with pytest.raises(UnsupportedError, match="no hot reset"):
        device.hot_reset()
    with pytest.raises(ValueError, match="no reset method 'flr'"):
        device.reset("flr")


# Attached


def test_its_bind_blocks_nobody(mtty: HostDevice, iommufd: IOMMUFD, ioas: IOAS) -> None:
    """What it would do to the memory cannot be seen: none of the samples pins, reads or writes any (Linux 7.3)."""
    device = iommufd.bind(mtty)
    assert (device.bind_change.kind, device.bind_change.devices) == (ChangeKind.NOOP, ())
    buffer = DMABuffer(1 << 16)
    mapping = ioas.map(buffer)
    preview = device.preview_attach(ioas)
    assert (preview.verdict, preview.kind, preview.changes) == (Verdict.ACCEPTED, ChangeKind.FIRST, (mtty,))
    attached = device.attach(ioas)
    assert (attached.kind, attached.devices) == (ChangeKind.FIRST, (mtty,))
    assert device.page_table is ioas
    mapping.unmap()
    detached = device.detach()
    assert (detached.kind, detached.devices) == (ChangeKind.DETACH, (mtty,))
    assert device.page_table is None


def test_two_of_one_parent_go_their_own_ways(make: Maker, iommufd: IOMMUFD) -> None:
    first, second = (iommufd.bind(make("mtty", "mtty-1")) for _ in range(2))
    one, other = iommufd.alloc_ioas(), iommufd.alloc_ioas()
    first.attach(one)
    assert second.preview_attach(other).verdict is Verdict.ACCEPTED
    assert second.attach(other).devices == (second.host,)
    moved = first.replace(other)
    assert (moved.kind, moved.devices) == (ChangeKind.REPLACE, (first.host,))
    first.replace(one)
    assert (first.page_table, second.page_table) == (one, other)


def test_no_iommu_is_before_it(mtty: HostDevice, iommufd: IOMMUFD, ioas: IOAS) -> None:
    device = iommufd.bind(mtty)
    with pytest.raises(NotFoundError, match=r"no IOMMU is before it.*nothing to tell .*; do without"):
        device.hw_info()
    with pytest.raises(NotFoundError, match="no IOMMU is before it"):
        device.alloc_hwpt(ioas)
    preview = device.preview_attach(ioas, pasid=1)
    assert preview.verdict is Verdict.REFUSED
    with pytest.raises(UnsupportedError, match="no PASIDs"):
        device.attach(ioas, pasid=1)


def test_hwpt_is_for_others(mtty: HostDevice, bind: Binder, iommufd: IOMMUFD, ioas: IOAS) -> None:
    hwpt = bind(*EDU).alloc_hwpt(ioas)
    device = iommufd.bind(mtty)
    assert device.preview_attach(hwpt).verdict is Verdict.REFUSED
    with pytest.raises(NotFoundError, match="no IOMMU is before it"):
        device.attach(hwpt)
    assert device.page_table is None


# By the command


def test_command_makes_lists_and_removes(make: Maker) -> None:
    name = str(uuid.uuid4())
    assert command("mdev", "create", "mtty", "mtty-2", "--uuid", name, "--dry-run").stdout == (
        f"mtty: make {name} of type mtty-2\n"
    )
    assert name not in command("mdev", "list").stdout
    assert command("mdev", "create", "mtty", "mtty-2", "--uuid", name).stdout == f"mtty: make {name} of type mtty-2\n"
    assert "EEXIST" in command("mdev", "create", "mtty", "mtty-1", "--uuid", name, status=1).stderr
    assert name in command("mdev", "list", "mtty").stdout
    types = {kind["type"]: kind for kind in json.loads(command("mdev", "list", "--json").stdout)}
    device = find_device(name)
    assert types["mtty-2"]["devices"] == [{"uuid": name, "vfio_cdev": device.vfio_cdev, "group": device.group_id}]
    shown = json.loads(command("show", name, "--json").stdout)
    assert shown["mdev_type"] == {"parent": "mtty", "type": "mtty-2", "name": "Dual port serial"}
    assert "on vfio already" in command("claim", "--dry-run", name).stderr
    assert "on vfio already" in command("claim", name).stderr
    assert f"no longer claimed, and left as it is: {name}" in command("release", name).stderr
    assert "none: its parent's driver does its DMA" in command("caps", name).stdout
    assert command("mdev", "remove", name, "--dry-run").stdout == f"{name}: remove\n"
    assert command("mdev", "remove", name).stdout == f"{name}: remove\n"
    command("mdev", "remove", name, status=1)
    assert name not in command("mdev", "list").stdout
