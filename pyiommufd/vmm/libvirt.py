"""libvirt's XML for a device (its formatdomain, "Host device assignment")."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from pyiommufd.host.discovery.devices import HostDevice

_ADDRESS = re.compile(r"([0-9a-f]+):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


def hostdev_xml(device: HostDevice, *, managed: bool = False) -> str:
    """The ``hostdev`` element that gives a domain a PCI device through iommufd (libvirt 12.1 and newer).

    libvirt opens the nodes itself, and hands QEMU their fds.

    Args:
        device: The device.
        managed: Whether libvirt puts the device on its vfio driver and back. It then does so with this device alone,
            not with its group; so claim it first, and leave this out.

    Raises:
        ValueError: It is not a PCI device.
    """
    match = _ADDRESS.fullmatch(device.name) if device.subsystem == "pci" else None
    if match is None:
        raise ValueError(f"{device.name} is not a PCI device")
    domain, bus, slot, function = match.groups()
    element = ElementTree.Element("hostdev", mode="subsystem", type="pci", managed="yes" if managed else "no")
    ElementTree.SubElement(element, "driver", name="vfio", iommufd="yes")
    source = ElementTree.SubElement(element, "source")
    ElementTree.SubElement(
        source, "address", domain=f"0x{domain}", bus=f"0x{bus}", slot=f"0x{slot}", function=f"0x{function}"
    )
    ElementTree.indent(element)
    return ElementTree.tostring(element, encoding="unicode")
