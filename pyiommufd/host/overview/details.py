"""Everything that this machine shows of one device, for somebody who is about to pass it through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyiommufd.errors import ClaimError, Refusal
from pyiommufd.host import drivers, sysfs, uses
from pyiommufd.host.claims.plan import ClaimPlan, plan_by
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.groups import Group
from pyiommufd.host.discovery.kernel_names import KernelNames, kernel_names
from pyiommufd.host.discovery.vfs import VFs, vfs_of
from pyiommufd.host.holders import Holder, holders_among
from pyiommufd.host.mdev import MdevType, mdev_type
from pyiommufd.host.overview.standing import Standing, standings
from pyiommufd.host.uses.snapshot import MachineSnapshot
from pyiommufd.printable import OneLine


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """One of a device's base address registers.

    Attributes:
        index: Its number; 6 is the expansion ROM.
        start: Where it lies in the host's addresses.
        size: Its length in bytes.
        kind: ``memory`` or ``io``.
    """

    index: int
    start: int
    size: int
    kind: str


@dataclass(frozen=True, slots=True, repr=False)
class DeviceDetails(OneLine):
    """A device as it was when it was looked at. What this machine or the device does not have is None or empty.

    Attributes:
        device: The device.
        names: Of the interfaces and disks of each member of its group, or of the device alone.
        subsystem_vendor_id: Who made the board, as a number.
        subsystem_device_id: Which board, as a number.
        revision: Of the hardware.
        driver_override: The driver that it was told to take.
        standing: How it stands to being claimed.
        group: Its IOMMU group.
        aliases: The PCI addresses that its DMA can carry.
        reset_methods: How it can be reset, the first tried first.
        power_state: ``D0``, ``D3hot``, ``D3cold`` …
        d3cold_allowed: Whether it may lose power while idle.
        link: Speed and width of its PCI Express link.
        virtual_functions: Its virtual functions, and how many it could have.
        physical_function: The device that it is a virtual function of.
        mdev_type: Of a mediated device, what it is and whose.
        regions: Its memory and I/O ports.
        holders: Who holds it, or its group, open.
        uses: What the host does with it that a claim would break.
        plan: What a claim would do; None where none can be made.
        no_plan: Why not.
    """

    device: HostDevice
    names: dict[HostDevice, KernelNames]
    subsystem_vendor_id: int | None
    subsystem_device_id: int | None
    revision: int | None
    driver_override: str | None
    standing: Standing
    group: Group | None
    aliases: tuple[str, ...]
    reset_methods: tuple[str, ...]
    power_state: str | None
    d3cold_allowed: bool | None
    link: str | None
    virtual_functions: VFs
    physical_function: HostDevice | None
    mdev_type: MdevType | None
    regions: tuple[MemoryRegion, ...]
    holders: tuple[Holder, ...]
    uses: tuple[Refusal, ...]
    plan: ClaimPlan | None
    no_plan: str

    def _line(self) -> str:
        return f"of {self.device.name}, {self.standing}"


def device_details(device: HostDevice) -> DeviceDetails:
    """Look at a device from all sides. Complete for root: others do not see who holds it, nor all aliases.

    Raises:
        DeviceNotFoundError: It is gone.
    """
    device = device.refreshed()
    path, group = device.sys_path, device.group
    plan, no_plan = None, ""
    snapshot = MachineSnapshot(thorough=True)
    try:
        plan = plan_by(snapshot, device)
    except ClaimError as error:
        no_plan = str(error)
    members = group.devices if group is not None else (device,)
    cold = sysfs.read(path / "d3cold_allowed")
    return DeviceDetails(
        device=device,
        names=kernel_names(members),
        subsystem_vendor_id=_number(path / "subsystem_vendor"),
        subsystem_device_id=_number(path / "subsystem_device"),
        revision=_number(path / "revision"),
        driver_override=drivers.driver_override(device),
        standing=standings(members)[device],
        group=group,
        aliases=device.aliases,
        reset_methods=tuple((sysfs.read(path / "reset_method") or "").split()),
        power_state=sysfs.read(path / "power_state"),
        d3cold_allowed=None if cold is None else cold == "1",
        link=_link(path),
        virtual_functions=vfs_of(device),
        physical_function=device.physical_function,
        mdev_type=mdev_type(device),
        regions=_regions(path),
        holders=holders_among(snapshot.processes, members),
        uses=uses.refusals_by(snapshot, [device]),
        plan=plan,
        no_plan=no_plan,
    )


def _number(path: Path) -> int | None:
    text = sysfs.read(path)
    return None if text is None else int(text, 16)


def _link(path: Path) -> str | None:
    speed, width = sysfs.read(path / "current_link_speed"), sysfs.read(path / "current_link_width")
    # The kernel writes "Unknown" and 0 where there is no link, as on the root complex.
    if not speed or not width or "nknown" in speed or width == "0":
        return None
    return f"{speed}, x{width}"


def _regions(path: Path) -> tuple[MemoryRegion, ...]:
    found = []
    # A line each: start, inclusive end, flags (IORESOURCE_IO 0x100, Linux 7.3, include/linux/ioport.h). Six of the
    # device and its ROM; what follows are the windows of a bridge, or of virtual functions.
    for index, line in enumerate(sysfs.lines(path / "resource")[:7]):
        start, last, flags = (int(word, 16) for word in line.split())
        if flags:
            found.append(MemoryRegion(index, start, last - start + 1, "io" if flags & 0x100 else "memory"))
    return tuple(found)
