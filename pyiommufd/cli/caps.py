"""``pyiommufd caps``: the iommufd ioctls of this kernel; a device's IOMMU, and the features of its vfio driver."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterable

import click

from pyiommufd.cli import records
from pyiommufd.cli.arguments import DeviceArgument, vf_token_value
from pyiommufd.cli.output import ReadingCommand, echo, json_option, print_json, print_pairs
from pyiommufd.cli.status import FAILED
from pyiommufd.host.checks.lacks import REACHES_ALL, untranslated
from pyiommufd.host.discovery.devices import HostDevice, find_device
from pyiommufd.host.holders import holders
from pyiommufd.host.running_kernel import has_cdevs
from pyiommufd.kernel.device.features.feature import DeviceFeature, FeatureAccess
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
    "features": "an object: each feature of DEVICE's driver (VFIO_DEVICE_FEATURE), and what it does: get, set; or null",
    "why_not": "why hw_info of DEVICE is not available, or empty",
}


@click.command(cls=ReadingCommand)
@click.argument("device", required=False, cls=DeviceArgument)
@click.option(
    "--vf-token",
    callback=vf_token_value,
    metavar="UUID",
    help="The VF token to bind DEVICE with: of a virtual function the one that the user of its physical function has "
    "set; of a physical function it sets it.",
)
@json_option(_KEYS)
def caps(device: str | None, vf_token: uuid.UUID | None, as_json: bool) -> None:
    """Show which iommufd ioctls this kernel supports; or the capabilities of DEVICE's IOMMU, and its driver's features.

    The kernel reports them only while the device is bound. A device that is on a vfio driver and not open
    elsewhere is bound briefly, which resets it. The command makes no claim.
    """
    if vf_token is not None and device is None:
        raise click.UsageError("--vf-token is for a DEVICE")
    target = None if device is None else find_device(device)
    requests, info, features, why_not = _query(target, vf_token)
    if as_json:
        print_json(
            {
                "kernel": os.uname().release,
                "cdev": has_cdevs(),
                "requests": requests,
                "device": None if target is None else target.name,
                "hw_info": None if info is None else _hw_info_record(info),
                "features": features,
                "why_not": why_not,
            }
        )
    elif target is None:
        _print_kernel(requests)
    elif features is not None:
        _print_device(target, info, features)
    if why_not and features is None:
        echo(f"pyiommufd caps: {why_not}", err=True)
        sys.exit(FAILED)


Features = dict[str, list[str]]
"""The features of a driver by the kernel's names, and what each does."""


def _query(
    target: HostDevice | None, vf_token: uuid.UUID | None
) -> tuple[dict[str, bool], HWInfo | None, Features | None, str]:
    """Which requests the kernel supports; IOMMU and features of a device that is named, or why there is no IOMMU."""
    with IOMMUFD() as iommufd:
        requests = known_requests(iommufd.fileno())
        if target is None:
            return requests, None, None, ""
        if why_not := _bind_obstacle(target):
            return requests, None, None, why_not
        with iommufd.bind(target, token=vf_token) as bound:
            features = {one.name: _words(bound.feature(one).probe()) for one in DeviceFeature}
            if dma := untranslated(target):
                return requests, None, features, f"no IOMMU covers {target.name}: {dma}"
            return requests, bound.hw_info(), features, ""


def _words(access: FeatureAccess) -> list[str]:
    return [(one.name or "").lower() for one in FeatureAccess if one in access]


def _bind_obstacle(device: HostDevice) -> str:
    """Why the device cannot be bound for IOMMU_GET_HW_INFO; empty if it can."""
    if device.vfio_cdev is None:
        if device.without_iommu:
            return f"no IOMMU covers {device.name}, so there is nothing to report of one: {REACHES_ALL}"
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


def _print_device(device: HostDevice, info: HWInfo | None, features: Features) -> None:
    has = tuple(f"{name} ({', '.join(words)})" for name, words in features.items() if words)
    print_pairs((("device", device.name), *_iommu_pairs(device, info), ("features", has or "none")))


def _iommu_pairs(device: HostDevice, info: HWInfo | None) -> Iterable[tuple[str, object]]:
    if info is None:
        return (("IOMMU", f"none: {untranslated(device)}"),)
    record = _hw_info_record(info)
    width = record["pasid_width"]
    return (
        ("IOMMU", f"{device.iommu or 'not named'}, {record['type']}"),
        ("capabilities", ", ".join(record["capabilities"]) or "none beyond translation"),
        ("PASIDs", f"{width} bits" if width else "none"),
        ("address widths", ", ".join(map(str, record["address_widths"] or ())) or None),
        ("nesting", {True: "yes", False: "no", None: None}[record["nesting"]]),
        ("registers", record["data"]),
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
