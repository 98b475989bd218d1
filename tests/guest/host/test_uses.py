"""What the host uses a device for: reasons that a claim is refused, each by making it so.

For a guest with an NVMe disk and a network card beside the other devices; tests/boot/test_uses.py starts it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd import ClaimRefusedError, HostDevice, find_device, list_devices, plan_claim
from pyiommufd.host import uses


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def disk() -> HostDevice:
    found = [device for device in list_devices("pci") if device.driver == "nvme"]
    if not found:
        pytest.skip("this machine has no NVMe disk")
    return found[0]


@pytest.fixture
def node(disk: HostDevice) -> Iterator[Path]:
    """Its block device, held open: the disk forgets what is written, the page cache of an open one does not."""
    (path,) = (Path("/dev") / path.name for path in Path("/sys/class/block").glob("nvme*n1"))
    with open(path, "rb"):
        yield path


@pytest.fixture
def card() -> HostDevice:
    found = [device for device in list_devices("pci") if device.driver in ("e1000e", "igb", "virtio-pci")]
    found = [device for device in found if (device.class_code or 0) >> 16 == 0x02 and device.driver != "virtio-pci"]
    if not found:
        pytest.skip("this machine has no network card")
    return found[0]


def refusals(device: HostDevice) -> list[tuple[str, str]]:
    """What a claim is refused for, and by it that nothing was changed."""
    with pytest.raises(ClaimRefusedError) as caught:
        plan_claim(device).apply()
    assert find_device(device.name).driver == device.driver
    assert all(refusal.device == device.name for refusal in caught.value.refusals)
    return [(refusal.kind, refusal.reason) for refusal in caught.value.refusals]


def test_idle_disk_can_be_claimed(disk: HostDevice) -> None:
    assert uses.refusals(disk) == ()
    with plan_claim(disk).apply():
        assert find_device(disk.name).driver == "vfio-pci"
    assert find_device(disk.name).driver == "nvme"


def test_swap_area(disk: HostDevice, node: Path) -> None:
    run("mkswap", node)
    run("swapon", node)
    try:
        ((kind, reason),) = refusals(disk)
        assert kind == "swap"
        assert str(node) in reason
        assert plan_claim(disk, force="swap").refusals == ()
        assert plan_claim(disk, force="mounted").refusals != ()
    finally:
        run("swapoff", node)
    assert uses.refusals(disk) == ()


def test_filesystem_on_a_loop_device_on_the_disk(disk: HostDevice, node: Path, tmp_path: Path) -> None:
    loop = run("losetup", "--find", "--show", node)
    try:
        run("mkfs.ext4", "-q", loop)
        point = tmp_path / "with a blank"
        point.mkdir()
        assert uses.refusals(disk) == ()
        run("mount", loop, point)
        try:
            assert refusals(disk) == [("mounted", f"it holds the filesystem mounted on {point}")]
        finally:
            run("umount", point)
    finally:
        run("losetup", "--detach", loop)
    assert uses.refusals(disk) == ()


def test_swap_on_a_device_mapper_device(disk: HostDevice, node: Path, tmp_path: Path) -> None:
    if shutil.which("dmsetup") is None:
        pytest.skip("dmsetup is not installed")
    sectors = run("blockdev", "--getsz", node)
    run("dmsetup", "create", "above", "--table", f"0 {sectors} linear {node} 0")
    try:
        (folder,) = (path.parent.parent for path in Path("/sys/class/block").glob("dm-*/dm/name"))
        above = Path("/dev") / folder.name
        with open(above, "rb"):
            run("mkswap", above)
            run("swapon", above)
            try:
                assert [kind for kind, _ in refusals(disk)] == ["swap"]
            finally:
                run("swapoff", above)
    finally:
        run("dmsetup", "remove", "--retry", "above")
    assert uses.refusals(disk) == ()


def test_default_route(card: HostDevice) -> None:
    (interface,) = (path.name for path in (card.sys_path / "net").iterdir())
    assert uses.refusals(card) == ()
    run("ip", "link", "set", interface, "up")
    try:
        run("ip", "address", "add", "192.0.2.1/24", "dev", interface)
        assert uses.refusals(card) == ()
        run("ip", "route", "add", "default", "via", "192.0.2.2", "dev", interface)
        assert refusals(card) == [("default-route", f"the default route leaves by {interface}")]
    finally:
        run("ip", "address", "flush", "dev", interface)
        run("ip", "link", "set", interface, "down")
    assert uses.refusals(card) == ()


def test_default_route_by_a_bridge_above(card: HostDevice) -> None:
    (interface,) = (path.name for path in (card.sys_path / "net").iterdir())
    run("ip", "link", "add", "above", "type", "bridge")
    try:
        run("ip", "link", "set", interface, "master", "above")
        run("ip", "link", "set", "above", "up")
        run("ip", "address", "add", "192.0.2.1/24", "dev", "above")
        run("ip", "route", "add", "default", "via", "192.0.2.2", "dev", "above")
        assert refusals(card) == [("default-route", "the default route leaves by above")]
    finally:
        run("ip", "link", "delete", "above")
    assert uses.refusals(card) == ()
