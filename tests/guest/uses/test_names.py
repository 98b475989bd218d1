"""Devices named by their disks, interfaces and nodes; and what is built on several of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pyiommufd import DeviceFile, DeviceNotFoundError, HostDevice, find_device, list_devices, plan_claim
from tests.guest.forked import run_cli
from tests.guest.uses.types import Runner


@pytest.fixture(scope="session")
def cards() -> list[HostDevice]:
    return [one for one in list_devices("pci") if one.driver == "e1000e"]


@pytest.fixture
def why_none() -> Callable[[str], str]:
    """Why a name is none of a device's."""

    def why(name: str) -> str:
        with pytest.raises(DeviceNotFoundError) as caught:
            find_device(name)
        return str(caught.value)

    return why


def test_disks(disk: HostDevice, system_disk: HostDevice, node: Path, tmp_path: Path) -> None:
    assert disk.block_devices == (node.name,)
    assert system_disk.block_devices == ("vda",)
    controller = node.name.removesuffix("n1")
    (tmp_path / "by-id").symlink_to(node)
    sysfs = [f"/sys/block/{node.name}", f"/sys/class/nvme/{controller}", f"/sys/block/{node.name}/queue/rotational"]
    for name in (node.name, controller, str(node), f"/dev/{controller}", str(tmp_path / "by-id"), *sysfs):
        assert find_device(name) == disk
    for name in ("vda", "vda1", "/dev/vda", "/dev/vda1", "/sys/class/block/vda1"):
        assert find_device(name) == system_disk


def test_interfaces(cards: list[HostDevice]) -> None:
    for card in cards:
        (name,) = card.interfaces
        assert [path.name for path in (card.sys_path / "net").iterdir()] == [name]
        for other in (name, f"/sys/class/net/{name}", f"/sys/class/net/{name}/statistics/rx_bytes"):
            assert find_device(other) == card


def test_commands(cards: list[HostDevice], disk: HostDevice, node: Path) -> None:
    shown = {one["name"]: one for one in json.loads(run_cli("list", "--json").stdout)}
    assert shown[cards[0].name]["interfaces"] == list(cards[0].interfaces)
    assert shown[disk.name]["blocks"] == [node.name]
    text = run_cli("list").stdout
    assert f"{cards[0].interfaces[0]}: " in next(line for line in text.splitlines() if line.startswith(cards[0].name))
    assert run_cli("plan", str(node)).stdout == run_cli("plan", disk.name).stdout != ""


def test_volume(
    disk: HostDevice, shared_disk: HostDevice, run: Runner, tmp_path: Path, why_none: Callable[[str], str]
) -> None:
    """Of device mapper, on two disks; and a loop device on a file of a filesystem on one."""
    disks = {one.block_devices[0]: one for one in (disk, shared_disk)}
    table = "\n".join(f"{number * 8192} 8192 linear /dev/{name} 0" for number, name in enumerate(disks))
    run("dmsetup", "create", "both", "--table", table)
    try:
        built = ", ".join(f"{name} ({disks[name].name})" for name in sorted(disks))
        assert why_none("dm-0") == f"dm-0 (both) is no device of its own: it is built on {built}; name what is meant"
        assert f"/dev/dm-0 (both) is no device of its own: it is built on {built}" in why_none("/dev/dm-0")
    finally:
        run("dmsetup", "remove", "--retry", "both")
    (name,) = disk.block_devices
    run("mkfs.ext4", "-q", f"/dev/{name}")
    run("mount", f"/dev/{name}", tmp_path)
    try:
        with (tmp_path / "image").open("wb") as file:
            file.truncate(1 << 20)
        loop = Path(run("losetup", "--find", "--show", tmp_path / "image"))
        assert f"{loop} is no device of its own: it is built on {name} ({disk.name})" in why_none(str(loop))
        run("losetup", "--detach", loop)
        assert "is a file, not a device's node" in why_none(str(tmp_path / "image"))
    finally:
        run("umount", tmp_path)


def test_bond_and_what_is_above_it(cards: list[HostDevice], run: Runner, why_none: Callable[[str], str]) -> None:
    names = [card.interfaces[0] for card in cards[:2]]
    run("ip", "link", "add", "up0", "type", "bond")
    try:
        for name in names:
            run("ip", "link", "set", name, "down")
            run("ip", "link", "set", name, "master", "up0")
        built = ", ".join(f"{name} ({card.name})" for name, card in zip(names, cards[:2], strict=True))
        assert why_none("up0") == f"up0 is no device of its own: it is built on {built}; name what is meant"
        run("ip", "link", "add", "link", "up0", "name", "up1", "type", "macvlan")
        assert f"it is built on {built}" in why_none("/sys/class/net/up1")
    finally:
        run("ip", "link", "delete", "up0")
    assert "lo belongs to no PCI device" in why_none("lo")


def test_claimed_disk(disk: HostDevice, node: Path) -> None:
    """By its disk it is taken; then it has none, and a vfio node."""
    with plan_claim(str(node)).apply() as claim:
        (claimed,) = claim.devices
        assert claimed == disk
        assert disk.block_devices == ()
        cdev = claimed.vfio_cdev
        assert cdev is not None
        for name in (cdev, Path(cdev).name, f"/sys/class/vfio-dev/{Path(cdev).name}"):
            with DeviceFile(name) as file:
                assert file.device == disk
        group = f"/dev/vfio/{disk.group_id}"
        with pytest.raises(DeviceNotFoundError, match=f"{group} is IOMMU group .* name one of {disk.name}"):
            find_device(group)
