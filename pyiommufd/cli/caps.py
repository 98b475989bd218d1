"""``pyiommufd caps``: which iommufd ioctls this kernel supports, and the capabilities of a device's IOMMU."""

from __future__ import annotations

import os
import sys

import click

from pyiommufd.cli import records
from pyiommufd.cli.arguments import DeviceName
from pyiommufd.cli.output import ReadingCommand, echo, json_option, print_json, print_pairs
from pyiommufd.cli.status import FAILED
from pyiommufd.host.discovery.devices import HostDevice, find_device
from pyiommufd.host.holders import holders
from pyiommufd.host.running_kernel import has_cdevs
from pyiommufd.kernel.iommufd import IOMMUFD
from pyiommufd.kernel.pagetables.hw_info import HWCapability, HWInfo, HWInfoType, IntelVTd
from pyiommufd.uapi.known import known_requests

_KEYS = {
    "kernel": "the kernel's release",
    "cdev": "whether vfio devices have nodes of their own, or null",
    "requests": "an object: each ioctl of iommufd, and whether this kernel knows it",
    "device": "the name of DEVICE, or null",
    "hw_info": "what the IOMMU before it is and can, or null",
    "hw_info.type": "whose IOMMU it is, in lower case, or a number",
    "hw_info.capabilities": "what it can do for the device, by the kernel's names in lower case",
    "hw_info.pasid_width": "bits of the PASIDs that the device may use; 0: none",
    "hw_info.address_widths": "bits of the addresses that its second-stage page tables can have, or null",
    "hw_info.nesting": "whether page tables can be nested, or null where the type does not tell",
    "hw_info.data": "its registers as the kernel gave them, hexadecimal",
    "why_not": "why there is no hw_info of DEVICE, or empty",
}


@click.command(cls=ReadingCommand)
@click.argument("device", required=False, type=DeviceName())
@json_option(_KEYS)
def caps(device: str | None, as_json: bool) -> None:
    """Show what this kernel's iommufd knows, and what the IOMMU before DEVICE can.

    The kernel tells of a device's IOMMU once the device is bound. Where it is on a vfio driver, and nobody has it open,
    it is bound for a moment, which resets it. Nothing is claimed for this.
    """
    target = None if device is None else find_device(device)
    info, why_not = None, ""
    with IOMMUFD() as iommufd:
        requests = known_requests(iommufd.fileno())
        if target is not None:
            why_not = _obstacle(target)
            if not why_not:
                with iommufd.bind(target) as bound:
                    info = bound.hw_info()
    if as_json:
        print_json(
            {
                "kernel": os.uname().release,
                "cdev": has_cdevs(),
                "requests": requests,
                "device": None if target is None else target.name,
                "hw_info": None if info is None else _record(info),
                "why_not": why_not,
            }
        )
    elif target is None:
        nodes = {True: "yes", False: "no", None: "not known"}[has_cdevs()]
        print_pairs(
            [
                ("kernel", os.uname().release),
                ("nodes for vfio devices", nodes),
                *((name, "yes" if known else "no") for name, known in requests.items()),
            ]
        )
    elif info is not None:
        record = _record(info)
        width = record["pasid_width"]
        print_pairs(
            (
                ("device", target.name),
                ("IOMMU", f"{target.iommu or 'not named'}, {record['type']}"),
                ("can", ", ".join(record["capabilities"]) or "nothing beyond translating"),
                ("PASIDs", f"{width} bits" if width else "none"),
                ("address widths", ", ".join(map(str, record["address_widths"] or ())) or None),
                ("nesting", {True: "yes", False: "no", None: None}[record["nesting"]]),
                ("registers", record["data"]),
            )
        )
    if why_not:
        echo(f"pyiommufd caps: {why_not}", err=True)
        sys.exit(FAILED)


def _obstacle(device: HostDevice) -> str:
    """Why IOMMU_GET_HW_INFO cannot be issued for the device; empty if it can."""
    if device.vfio_cdev is None:
        return (
            f"{device.name} is on {device.driver or 'no driver'}: the kernel tells of its IOMMU once it is bound, "
            "which takes a claim"
        )
    held = holders(device)
    if held:
        return f"{device.name} is in use, and cannot be bound beside that: {'; '.join(map(str, held))}"
    return ""


def _record(info: HWInfo) -> records.Record:
    kind = info.type
    vtd = info.decoded if isinstance(info.decoded, IntelVTd) else None
    return {
        "type": kind.name.lower() if isinstance(kind, HWInfoType) else kind,
        "capabilities": [
            capability.name.lower()
            for capability in HWCapability
            if capability.name is not None and capability in info.capabilities
        ],
        "pasid_width": info.pasid_width,
        "address_widths": None if vtd is None else list(vtd.address_widths),
        "nesting": None if vtd is None else vtd.nesting,
        "data": info.data.hex(),
    }
