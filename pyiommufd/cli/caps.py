"""``pyiommufd caps``: which iommufd ioctls this kernel supports, and the capabilities of a device's IOMMU."""

from __future__ import annotations

import os
import sys

import click

from pyiommufd.cli import records
from pyiommufd.cli.arguments import DeviceArgument
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
    "hw_info": "type and capabilities of the device's IOMMU, or null",
    "hw_info.type": "the IOMMU's vendor type, in lower case, or a number",
    "hw_info.capabilities": "its capabilities for the device, by the kernel's names in lower case",
    "hw_info.pasid_width": "bits of the PASIDs that the device may use; 0: none",
    "hw_info.address_widths": "address widths in bits of its second-stage page tables, or null",
    "hw_info.nesting": "whether page tables can be nested, or null where the type does not tell",
    "hw_info.data": "the IOMMU's registers as returned by the kernel, hexadecimal",
    "why_not": "why hw_info of DEVICE is not available, or empty",
}


@click.command(cls=ReadingCommand)
@click.argument("device", required=False, cls=DeviceArgument)
@json_option(_KEYS)
def caps(device: str | None, as_json: bool) -> None:
    """Show which iommufd ioctls this kernel supports, and the capabilities of DEVICE's IOMMU.

    The kernel reports a device's IOMMU only while the device is bound. A device that is on a vfio driver and not open
    elsewhere is bound briefly, which resets it. The command makes no claim.
    """
    target = None if device is None else find_device(device)
    requests, info, why_not = _query(target)
    if as_json:
        print_json(
            {
                "kernel": os.uname().release,
                "cdev": has_cdevs(),
                "requests": requests,
                "device": None if target is None else target.name,
                "hw_info": None if info is None else _hw_info_record(info),
                "why_not": why_not,
            }
        )
    elif target is None:
        _print_kernel(requests)
    elif info is not None:
        _print_device(target, info)
    if why_not:
        echo(f"pyiommufd caps: {why_not}", err=True)
        sys.exit(FAILED)


def _query(target: HostDevice | None) -> tuple[dict[str, bool], HWInfo | None, str]:
    """Which requests the kernel supports, the IOMMU of the device if one is named, and why there is none of it."""
    with IOMMUFD() as iommufd:
        requests = known_requests(iommufd.fileno())
        if target is None:
            return requests, None, ""
        if why_not := _bind_obstacle(target):
            return requests, None, why_not
        with iommufd.bind(target) as bound:
            return requests, bound.hw_info(), ""


def _bind_obstacle(device: HostDevice) -> str:
    """Why the device cannot be bound for IOMMU_GET_HW_INFO; empty if it can."""
    if device.vfio_cdev is None:
        return (
            f"{device.name} is on {device.driver or 'no driver'}: the kernel reports its IOMMU only while the device "
            f"is bound, which takes a claim: pyiommufd claim {device.name}"
        )
    held = holders(device)
    if held:
        return f"{device.name} is in use and cannot be bound at the same time: {'; '.join(map(str, held))}"
    return ""


def _print_kernel(requests: dict[str, bool]) -> None:
    nodes = {True: "yes", False: "no", None: "not known"}[has_cdevs()]
    print_pairs(
        [
            ("kernel", os.uname().release),
            ("nodes for vfio devices", nodes),
            *((name, "yes" if known else "no") for name, known in requests.items()),
        ]
    )


def _print_device(device: HostDevice, info: HWInfo) -> None:
    record = _hw_info_record(info)
    width = record["pasid_width"]
    print_pairs(
        (
            ("device", device.name),
            ("IOMMU", f"{device.iommu or 'not named'}, {record['type']}"),
            ("capabilities", ", ".join(record["capabilities"]) or "none beyond translation"),
            ("PASIDs", f"{width} bits" if width else "none"),
            ("address widths", ", ".join(map(str, record["address_widths"] or ())) or None),
            ("nesting", {True: "yes", False: "no", None: None}[record["nesting"]]),
            ("registers", record["data"]),
        )
    )


def _hw_info_record(info: HWInfo) -> records.Record:
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
