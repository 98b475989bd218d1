"""Requester ids: under which addresses a device's DMA reaches the IOMMU.

A bridge to conventional PCI speaks for the devices behind it, so that the IOMMU, and a DMA fault in the kernel's log,
see an address that may be in no folder of sysfs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pyiommufd.host import sysfs

if TYPE_CHECKING:
    from pyiommufd.host.discovery.devices import HostDevice

_STATUS, _CAPABILITIES_LIST = 0x06, 0x10  # PCI Local Bus Specification 3.0, 6.2.3
_CAPABILITIES_POINTER = 0x34
_EXPRESS = 0x10  # the capability's id; PCI Express Base Specification 5.0, 7.5.3
_PCIE_TO_PCI, _PCI_TO_PCIE = 0x7, 0x8


def dma_aliases(device: HostDevice) -> tuple[str, ...]:
    """The PCI addresses that a device's DMA can carry: its own first, then those of the bridges on its way.

    A device behind Intel's VMD does DMA as VMD itself: that one's address is in place of its own. As the kernel's
    ``pci_for_each_dma_alias`` (Linux 7.3, drivers/pci/search.c), apart from its list of devices known to use other
    addresses. Complete for root only: the kernel shows others just the first bytes of a bridge's configuration space,
    and a bridge whose kind is not known is left out. Empty for what is no PCI device.
    """
    if device.subsystem != "pci":
        return ()
    requester = _requester(device.sys_path)
    found = [requester.name]
    bridge = requester.parent
    while _is_pci(bridge):
        domain = bridge.name.rpartition(":")[0].rpartition(":")[0]
        secondary = sysfs.read(bridge / "secondary_bus_number")
        kind = _express_type(bridge)
        if kind == _PCIE_TO_PCI and secondary is not None:
            found.append(f"{domain}:{int(secondary):02x}:00.0")
        elif kind in (_PCI_TO_PCIE, "conventional"):
            found.append(bridge.name)
        bridge = bridge.parent
    return tuple(dict.fromkeys(found))


def devices_of_requester(address: str, devices: list[HostDevice]) -> tuple[HostDevice, ...]:
    """The devices that a requester id can stand for.

    Args:
        address: A PCI address with or without its domain, such as ``02:00.0`` from a line of the kernel's log.
        devices: Among which to look, as `list_devices` returns them.
    """
    wanted = address.lower()
    return tuple(
        device
        for device in devices
        if any(alias == wanted or alias.partition(":")[2] == wanted for alias in dma_aliases(device))
    )


def _requester(folder: Path) -> Path:
    """The folder of the device whose own address the DMA of this one has.

    As the kernel's `pci_real_dma_dev` (Linux 7.3, arch/x86/pci/common.c:727): VMD's for all behind it. Of no other PCI
    device does sysfs show a root bus (``pci10000:00``) below it.
    """
    above = folder.parent
    while _is_pci(above):
        above = above.parent
    return _requester(above.parent) if _is_pci(above.parent) else folder


def _is_pci(folder: Path) -> bool:
    return sysfs.link_name(folder / "subsystem") == "pci"


def _express_type(bridge: Path) -> int | str | None:
    """The bridge's PCI Express port type; ``conventional`` where it has none, None where that cannot be seen."""
    try:
        config = (bridge / "config").read_bytes()
    except OSError:
        return None
    if len(config) < 64 or not config[_STATUS] & _CAPABILITIES_LIST:
        return None if len(config) < 64 else "conventional"
    at = config[_CAPABILITIES_POINTER] & 0xFC
    for _ in range(48):  # no chain is longer, unless it goes in circles
        if not at:
            return "conventional"
        if at + 4 > len(config):
            return None
        if config[at] == _EXPRESS:
            return (config[at + 2] >> 4) & 0xF
        at = config[at + 1] & 0xFC
    return None
