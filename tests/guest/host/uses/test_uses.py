"""What a guest itself lives on: its filesystems by 9p, and the port to the machine that has started it.

Uses of disks and network cards are in tests/guest/uses, for a guest that has such devices.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd import ClaimRefusedError, HostDevice, list_devices, plan_claim
from pyiommufd.host import uses
from pyiommufd.host.overview.standing import Standing, standings


def having(pattern: str) -> list[HostDevice]:
    """The devices that have such a path below them."""
    return [device for device in list_devices("pci") if next(device.sys_path.glob(pattern), None) is not None]


def test_filesystems_by_9p() -> None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    shares = having("virtio*/mount_tag")
    assert shares
    for device in shares:
        (tag,) = (path.read_text().strip("\0\n") for path in device.sys_path.glob("virtio*/mount_tag"))
        (point,) = (words[1] for words in mounts if words[2] == "9p" and words[0] == tag)
        (refusal,) = uses.refusals(device)
        assert (refusal.device, refusal.kind) == (device.name, "mounted")
        assert refusal.reason == f"it holds the filesystem mounted on {point}"


def test_port_that_the_agent_holds() -> None:
    (console,) = having("virtio*/virtio-ports")
    # With another port, pytest's own may be held as well.
    (refusal,) = (one for one in uses.refusals(console) if "is held open by pid 1 (" in one.reason)
    assert refusal.kind == "held"
    assert refusal.reason.startswith("/dev/vport")


def test_claim_of_one_of_them_is_refused_for_all() -> None:
    """They share a group: the claim would take all of them."""
    (console,) = having("virtio*/virtio-ports")
    shares = having("virtio*/mount_tag")
    assert console.group is not None
    assert {*shares, console} <= set(console.group.devices)
    plan = plan_claim(console)
    with pytest.raises(ClaimRefusedError) as caught:
        plan.apply()
    assert {refusal.device for refusal in caught.value.refusals} == {device.name for device in (*shares, console)}
    assert all(device.refreshed().driver == "virtio-pci" for device in (*shares, console))
    standing = standings(list_devices())
    assert {standing[device] for device in (*shares, console)} == {Standing.IN_USE}
