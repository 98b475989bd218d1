"""Disks in use: each use refused with its reason, and the disk claimed, used and given back when it has ended."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyiommufd import DMABuffer, HostDevice, find_device, list_devices, plan_claim
from pyiommufd.host import uses
from pyiommufd.host.overview.standing import Standing, standings
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.testing.drivers.nvme import NvmeDriver
from tests.guest.dma import IOVA
from tests.guest.uses.disks import node_of
from tests.guest.uses.types import Driven, Refused, Runner
from tests.patience import until

TEXT = b"kept where it belongs\n" * 1000


@pytest.fixture(autouse=True)
def idle_after(disk: HostDevice, shared_disk: HostDevice) -> Iterator[None]:
    """No test leaves a use behind."""
    yield
    assert uses.refusals(disk) == uses.refusals(shared_disk) == ()


@contextmanager
def mounted(run: Runner, node: Path, point: Path) -> Iterator[Path]:
    """A filesystem on its mount point."""
    point.mkdir(exist_ok=True)
    run("mount", node, point)
    try:
        yield point
    finally:
        run("umount", point)


def test_neighbour_with_a_mounted_filesystem(
    shared_disk: HostDevice,
    edu_beside_disk: HostDevice,
    run: Runner,
    refused: Refused,
    driven: Driven,
    tmp_path: Path,
) -> None:
    """The disk is not named, and in the group of what is: the claim would take the disk along."""
    node = until(lambda: node_of(shared_disk))
    assert node is not None
    run("mkfs.ext4", "-q", node)
    with mounted(run, node, tmp_path / "a blank") as point:
        (point / "file").write_bytes(TEXT)
        expected = [(shared_disk.name, "mounted", f"it holds the filesystem mounted on {point}")]
        assert refused(edu_beside_disk) == refused(shared_disk) == expected
        standing = standings(list_devices())
        assert standing[edu_beside_disk] == standing[shared_disk] == Standing.IN_USE
    assert standings(list_devices())[edu_beside_disk] == Standing.CLAIMABLE
    with driven(edu_beside_disk) as (device, ioas):
        assert find_device(shared_disk.name).driver == "vfio-pci"
        buffer = DMABuffer(4096)
        mapping = ioas.map(buffer, iova=IOVA)
        with EduDriver(device) as driver:
            buffer[:64] = b"x" * 64
            driver.copy_in(IOVA, 64)
            buffer[:64] = bytes(64)
            driver.copy_out(IOVA, 64)
        assert buffer[:64] == b"x" * 64
        mapping.unmap()
    node = until(lambda: node_of(shared_disk))
    assert node is not None
    with mounted(run, node, tmp_path / "again") as point:
        assert (point / "file").read_bytes() == TEXT


def test_filesystem_above_device_mapper(
    disk: HostDevice, node: Path, run: Runner, refused: Refused, driven: Driven, tmp_path: Path
) -> None:
    under = (disk.name, "dm", f"{node.name} is under device mapper's dm-0 (above)")
    table = f"0 {run('blockdev', '--getsz', node)} linear {node} 0"
    run("dmsetup", "create", "above", "--table", table)
    try:
        assert refused(disk) == [under]
        run("mkfs.ext4", "-q", "/dev/dm-0")
        with mounted(run, Path("/dev/dm-0"), tmp_path / "point") as point:
            (point / "file").write_bytes(TEXT)
            reason = f"it holds the filesystem mounted on {point}, by way of {node.name} and dm-0"
            assert refused(disk) == [under, (disk.name, "mounted", reason)]
    finally:
        run("dmsetup", "remove", "--retry", "above")
    with driven(disk) as (device, ioas), NvmeDriver(device, ioas) as driver:
        assert driver.identify().serial == "alone"
    again = until(lambda: node_of(disk))
    assert again is not None
    with mounted(run, again, tmp_path / "again") as point:
        assert (point / "file").read_bytes() == TEXT


def test_swap_area(disk: HostDevice, node: Path, run: Runner, refused: Refused, driven: Driven) -> None:
    run("mkswap", node)
    run("swapon", node)
    try:
        assert refused(disk) == [(disk.name, "swap", f"it holds the swap area {node}")]
    finally:
        run("swapoff", node)
    with driven(disk) as (device, ioas), NvmeDriver(device, ioas) as driver:
        assert driver.identify().serial == "alone"
    again = until(lambda: node_of(disk))
    assert again is not None
    run("swapon", again)
    assert str(again) in Path("/proc/swaps").read_text()
    run("swapoff", again)


def test_member_of_an_array(disk: HostDevice, node: Path, refused: Refused) -> None:
    """By sysfs in place of mdadm; the array has one of its two members, and does not run."""
    Path("/sys/module/md_mod/parameters/new_array").write_text("md_uses")
    array = Path("/sys/block/md_uses/md")
    try:
        (array / "metadata_version").write_text("none")
        (array / "level").write_text("raid1")
        (array / "raid_disks").write_text("2")
        (array / "new_dev").write_text(Path("/sys/class/block", node.name, "dev").read_text())
        assert refused(disk) == [(disk.name, "md", f"{node.name} is a member of the RAID array md_uses")]
    finally:
        (array / "array_state").write_text("clear")


def test_loop_devices(disk: HostDevice, node: Path, run: Runner, refused: Refused, tmp_path: Path) -> None:
    """On the disk itself, and on a file of its filesystem."""
    loop = Path(run("losetup", "--find", "--show", node))
    under = (disk.name, "held", f"{node.name} is under {loop.name}")
    try:
        assert refused(disk) == [under]
        run("mkfs.ext4", "-q", loop)
        with mounted(run, loop, tmp_path / "point") as point:
            reason = f"it holds the filesystem mounted on {point}, by way of {node.name} and {loop.name}"
            assert refused(disk) == [under, (disk.name, "mounted", reason)]
    finally:
        run("losetup", "--detach", loop)
    with mounted(run, node, tmp_path / "point") as point:
        with (point / "image").open("wb") as file:
            file.truncate(8 << 20)
        inner = Path(run("losetup", "--find", "--show", point / "image"))
        run("mkswap", inner)
        run("swapon", inner)
        try:
            assert refused(disk) == [
                (disk.name, "mounted", f"it holds the filesystem mounted on {point}"),
                (disk.name, "swap", f"it holds the swap area {inner}, by way of {node.name} and {inner.name}"),
            ]
        finally:
            run("swapoff", inner)
            run("losetup", "--detach", inner)


def test_filesystem_of_another_mount_namespace(
    disk: HostDevice, node: Path, run: Runner, refused: Refused, tmp_path: Path
) -> None:
    run("mkfs.ext4", "-q", node)
    script = f"mount {node} {tmp_path} && echo mounted && exec cat"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mounted\n"
        reason = f"it holds the filesystem mounted on {tmp_path} of pid {other.pid} (cat)"
        assert refused(disk) == [(disk.name, "mounted", reason)]
        assert other.stdin is not None
        other.stdin.close()


def test_journal_of_another_disks_filesystem(
    disk: HostDevice, shared_disk: HostDevice, node: Path, run: Runner, refused: Refused, tmp_path: Path
) -> None:
    """Nothing shows it but that the kernel has the disk for itself."""
    other = until(lambda: node_of(shared_disk))
    assert other is not None
    run("mkfs.ext4", "-q", "-O", "journal_dev", node)
    run("mkfs.ext4", "-q", "-J", f"device={node}", other)
    with mounted(run, other, tmp_path / "point"):
        expected = [(disk.name, "held", f"the kernel holds {node} exclusively, and does not show what for")]
        assert refused(disk) == expected


@pytest.mark.parametrize("which", ["disk", "controller"])
def test_node_that_a_process_holds(disk: HostDevice, node: Path, refused: Refused, which: str) -> None:
    path = node if which == "disk" else Path(str(node).removesuffix("n1"))
    with open(path, "rb"):
        reason = f"{path} is held open by this process (pid {os.getpid()})"
        assert refused(disk) == [(disk.name, "held", reason)]


def test_node_that_a_process_has_mapped_and_closed(disk: HostDevice, node: Path, refused: Refused) -> None:
    with open(node, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
    # mmap keeps a descriptor of its own: that of the kernel's mapping is left when it is closed.
    try:
        ((_, kind, reason),) = refused(disk)
        assert kind == "held"
        assert f"{node} is held open by this process (pid {os.getpid()})" in reason
    finally:
        mapping.close()


def test_registers_that_a_process_has_mapped(disk: HostDevice, refused: Refused) -> None:
    path = disk.sys_path / "resource0"
    with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 4096):
        reason = f"{path} is held open by this process (pid {os.getpid()})"
        assert refused(disk) == [(disk.name, "held", reason)]


def test_use_that_begins_after_the_plan(disk: HostDevice, node: Path) -> None:
    plan = plan_claim(disk)
    assert plan.refusals == ()
    with open(node, "rb"), pytest.raises(Exception, match=f"{node} is held open"):
        plan.apply()
    assert find_device(disk.name).driver == "nvme"
