"""The whole lifecycle on a shared IOMMU group, each step shown and checked.

    python examples/shared_group.py [DEVICE [PEER]]

DEVICE and PEER are two members of one IOMMU group, by default the edu devices of `pyiommufd guest`. Any PCI device
that the host can spare will do; data is moved where it is QEMU's edu device, for which pyiommufd has a driver.
Takes root, or the rights to write to sysfs and to open /dev/iommu.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pyiommufd import (
    IOMMUFD,
    Device,
    DeviceNotFoundError,
    DMABuffer,
    Group,
    GroupConflictError,
    GroupNotViableError,
    HostDevice,
    IOMMUFDError,
    find_device,
    plan_claim,
)
from pyiommufd.host import drivers
from pyiommufd.testing.edu import DEVICE_ID, VENDOR_ID, EduDriver

IOVA = 0x100000
LENGTH = 1024


def say(text: str) -> None:
    print(text, flush=True)


def title(text: str) -> None:
    say(f"\n== {text}")


def check(holds: bool, text: str) -> None:
    """Say what was seen, and end with an error where it is not what the kernel promises."""
    say(f"   {'ok ' if holds else 'NOT SO '} {text}")
    if not holds:
        sys.exit(f"this is not as it should be: {text}")


def show(group: Group) -> None:
    say(f"IOMMU group {group.id} ({group.type}), {'viable' if group.viable else 'not viable'}")
    for member in group.devices:
        kind = "bridge" if member.is_bridge else "device"
        note = "   <- blocks the group" if member in group.blockers else ""
        ids = f"{member.vendor_id or 0:04x}:{member.device_id or 0:04x}"
        say(f"   {member.name}  {ids}  {kind}  driver: {member.driver or '-'}{note}")


def group_of(device: HostDevice) -> Group:
    group = device.refreshed().group
    if group is None:
        sys.exit(f"{device.name} has no IOMMU group: the IOMMU is off")
    return group


def bind_unclaimed(host: HostDevice) -> None:
    """Move only this one device to vfio-pci and bind it, to show how the kernel refuses that."""
    driver, override = host.driver, drivers.driver_override(host)
    drivers.load_driver("pci", "vfio-pci")
    drivers.set_driver_override(host, "vfio-pci")
    try:
        drivers.unbind(host)
        drivers.bind(host, "vfio-pci")
        with IOMMUFD() as iommufd:
            try:
                iommufd.bind(host)
            except GroupNotViableError as error:
                say(f"   {error}")
                names = ", ".join(f"{blocker.name} on {blocker.driver}" for blocker in error.blockers)
                check(bool(error.blockers), f"refused because of {names}")
            else:
                check(group_of(host).viable, "accepted, as no member of the group is on a host driver")
    finally:
        drivers.unbind(host)
        drivers.set_driver_override(host, override)
        if driver is not None:
            drivers.bind(host, driver)


class Mover:
    """Moves data by the device's own DMA, and looks whether it arrived."""

    def __init__(self, device: Device, memory: DMABuffer, iova: int) -> None:
        self._driver = EduDriver(device)
        self._memory = memory
        self._iova = iova

    def moves(self) -> bool:
        """Have the device copy fresh bytes from one page to another. Whether they are there afterwards."""
        there, fresh = 4096, os.urandom(LENGTH)
        self._memory[:LENGTH] = fresh
        self._memory[there : there + LENGTH] = bytes(LENGTH)
        self._driver.copy_in(self._iova, LENGTH)
        self._driver.copy_out(self._iova + there, LENGTH)
        arrived = self._memory[there : there + LENGTH]
        if arrived not in (fresh, bytes(LENGTH)):
            sys.exit("neither what was sent nor what was there before: the memory has something else")
        return arrived == fresh


def lifecycle(host: HostDevice, peer_host: HostDevice | None) -> None:
    with IOMMUFD() as iommufd:
        title("bind: the group's first blocks the DMA of every member")
        device = iommufd.bind(host)
        say(f"   {device.name}: changed {', '.join(map(str, device.bind_change.devices)) or 'nobody'}")
        peer = None if peer_host is None else iommufd.bind(peer_host)
        if peer is not None:
            say(f"   {peer.name}: changed {', '.join(map(str, peer.bind_change.devices)) or 'nobody'}")
        device.bus_master = True  # bind cleared it; without it nothing would move in any case
        check(device.bus_master, f"bus mastering of {device.name} is on")

        memory = DMABuffer(2 * 4096)
        ioas = iommufd.alloc_ioas()
        mapping = ioas.map(memory, iova=IOVA)
        moves = probe(device, memory, mapping.iova)

        title("before the attach")
        if moves:
            check(not moves(), "no data moved: DMA is blocked")

        title("attach: the group's first moves every member")
        change = device.attach(ioas)
        say(f"   {change.kind}: changed {', '.join(map(str, change.devices)) or 'nobody'}")
        if moves:
            check(moves(), f"{LENGTH} bytes moved from one page to another by the device")

        if peer is not None:
            title("a second address space for a member of the same group")
            try:
                peer.attach(iommufd.alloc_ioas())
            except GroupConflictError as error:
                say(f"   {error}")
                check([p.name for p in error.peers] == [device.name], f"refused, naming {device.name}")
            else:
                check(False, "the kernel let one group have two page tables")
            change = peer.attach(ioas)
            check(not change.devices, f"{peer.name} may join the first one, which changes nobody's DMA")

        title("detach: blocked again when the last of the group leaves")
        change = device.detach()
        if peer is not None:
            check(not change.devices, f"{device.name} has left, {peer.name} has not: nobody's DMA changed")
            if moves:
                check(moves(), f"{device.name} still reaches what {peer.name} is attached to")
            change = peer.detach()
        say(f"   changed {', '.join(map(str, change.devices)) or 'nobody'}")
        if moves:
            check(not moves(), "no data moved: DMA is blocked again")
        mapping.unmap()


def probe(device: Device, memory: DMABuffer, iova: int) -> Callable[[], bool] | None:
    """What moves data with this device, or None where there is no driver for it here."""
    if (device.host.vendor_id, device.host.device_id) == (VENDOR_ID, DEVICE_ID):
        return Mover(device, memory, iova).moves
    say(f"   there is no test driver for {device.name}: its DMA is not shown")
    return None


def at_work(device: HostDevice) -> None:
    """Show that a device works with its host driver again, if it is a kind that can be checked."""
    for node in device.sys_path.glob("virtio*/driver"):
        if node.resolve().name == "virtio_rng":
            current = Path("/sys/class/misc/hw_random/rng_current").read_text().strip()
            check(current.startswith("virtio_rng"), f"{device.name} is the host's source of random numbers again")
            with Path("/dev/hwrng").open("rb", buffering=0) as source:
                data = source.read(16)
            check(len(data) == 16, f"and gives them: {data.hex()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", metavar="DEVICE", nargs="?", help="such as 0000:02:01.0")
    parser.add_argument("peer", metavar="PEER", nargs="?", help="another member of its group")
    given = parser.parse_args()
    names = (given.device, given.peer) if given.device else ("0000:02:01.0", "0000:02:02.0")
    try:
        host = find_device(names[0])
        peer = None if names[1] is None else find_device(names[1])
    except DeviceNotFoundError as error:
        if given.device:
            raise
        sys.exit(f"{error}; a guest has these: pyiommufd guest -- python {sys.argv[0]}")
    before = group_of(host)
    if peer == host:
        sys.exit(f"{host.name} is named twice: PEER is another device")
    if peer is not None and peer not in before.devices:
        sys.exit(f"{peer.name} is in group {group_of(peer).id}, not in group {before.id} as {host.name}")

    title("the group")
    show(before)

    # Made before anything is touched: it says whether the host can spare these devices.
    plan = plan_claim([host] if peer is None else [host, peer])
    if plan.refusals:
        sys.exit("\n".join(map(str, plan.refusals)))

    title("a bind without a claim")
    bind_unclaimed(host)

    title("the plan")
    say("\n".join(f"   {line}" for line in str(plan).splitlines()))
    check(set(plan.companions) == set(before.devices) - {host, peer}, "it names the members that nobody asked for")

    title("the claim")
    with plan.apply():
        show(group_of(host))
        check(group_of(host).viable, "the group is viable")
        lifecycle(host, peer)

        title("give back")
    after = group_of(host)
    show(after)
    check([d.driver for d in after.devices] == [d.driver for d in before.devices], "every driver is as it was")
    for device in after.devices:
        at_work(device)
    say("\nall as it should be")


if __name__ == "__main__":
    try:
        main()
    except (IOMMUFDError, OSError) as error:
        sys.exit(str(error))
