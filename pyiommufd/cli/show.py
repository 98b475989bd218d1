"""``pyiommufd show``: everything about one device."""

from __future__ import annotations

import click

from pyiommufd.cli import records
from pyiommufd.cli.arguments import device_argument
from pyiommufd.cli.changing import way_out
from pyiommufd.cli.output import (
    ReadingCommand,
    json_option,
    print_json,
    print_pairs,
    print_visibility_note,
    show_progress,
)
from pyiommufd.host.checks.lacks import NOT_COVERED, no_iommu, no_noiommu_node, untranslated
from pyiommufd.host.discovery.devices import HostDevice, find_device
from pyiommufd.host.discovery.groups import is_safe
from pyiommufd.host.discovery.pci_ids import pci_ids
from pyiommufd.host.overview.details import DeviceDetails, device_details
from pyiommufd.host.overview.standing import standings

_KEYS = (
    records.DEVICE
    | {
        "class": "its class in words, or null",
        "subsystem_vendor_id": "vendor id of the board, or null",
        "subsystem_device_id": "device id of the board, or null",
        "revision": "of the hardware, two hexadecimal digits, or null",
        "driver_override": "the driver it was told to take, or null",
        "aliases": "the PCI addresses that its DMA can carry",
        "reset_methods": "how it can be reset, the first tried first",
        "power_state": "D0, D3hot, D3cold …, or null",
        "d3cold_allowed": "whether it may lose power while idle, or null",
        "link": "speed and width of its link, or null",
        "virtual_functions": "an object of `now`, `most` and `names`, or null",
        "mdev_type": "of a mediated device an object of `parent`, `type` and `name`, else null",
        "regions": "its memory and I/O ports: index, start, size, kind",
        "iommu_group": "its group, or null",
        "holders": "who holds it or its group open",
        "uses": "what the host does with it that a claim would break, and what could not be seen (kind unseen)",
        "plan": "what a claim would do, or null",
        "no_plan": "why no claim can be planned, or empty",
    }
    | records.nested("iommu_group", records.GROUP)
    | records.nested("holders", records.HOLDER)
    | records.nested("uses", records.REFUSAL)
    | {
        "plan.moves": "each device that changes its driver: device, before, after",
        "plan.companions": "the devices that go along",
        "plan.refusals": "what speaks against it, as `uses`",
    }
)


@click.command(cls=ReadingCommand)
@device_argument
@json_option(_KEYS)
def show(device: str, as_json: bool) -> None:
    """Show everything about DEVICE: hardware, group, who blocks it, resets, power, holders, what a claim would do."""
    with show_progress("looking at the device"):
        details = device_details(find_device(device))
    print_visibility_note()
    if as_json:
        print_json(_record(details))
    else:
        _print(details)


def _record(details: DeviceDetails) -> records.Record:
    device, group, plan = details.device, details.group, details.plan
    standing = standings(group.devices) if group is not None else {}
    functions, mediated = details.virtual_functions, details.mdev_type
    return records.device_record(device, details.standing, details.names[device]) | {
        "class": None if device.class_code is None else pci_ids().device_class(device.class_code),
        "subsystem_vendor_id": records.hexadecimal(details.subsystem_vendor_id, 4),
        "subsystem_device_id": records.hexadecimal(details.subsystem_device_id, 4),
        "revision": records.hexadecimal(details.revision, 2),
        "driver_override": details.driver_override,
        "aliases": list(details.aliases),
        "reset_methods": list(details.reset_methods),
        "power_state": details.power_state,
        "d3cold_allowed": details.d3cold_allowed,
        "link": details.link,
        "virtual_functions": {
            "now": functions.count,
            "most": functions.total,
            "names": [function.name for function in functions.devices],
        }
        if functions.total
        else None,
        "mdev_type": None
        if mediated is None
        else {"parent": mediated.parent.name, "type": mediated.id, "name": mediated.name},
        "regions": [
            {"index": region.index, "start": f"{region.start:#x}", "size": region.size, "kind": region.kind}
            for region in details.regions
        ],
        "iommu_group": None if group is None else records.group_record(group, standing, details.names),
        "holders": [records.holder_record(holder) for holder in details.holders],
        "uses": [records.refusal_record(refusal) for refusal in details.uses],
        "plan": None
        if plan is None
        else {
            "moves": [
                {"device": move.device.name, "before": move.device.driver, "after": move.driver} for move in plan.moves
            ],
            "companions": [companion.name for companion in plan.companions],
            "refusals": [records.refusal_record(refusal) for refusal in plan.refusals],
        },
        "no_plan": details.no_plan,
    }


def _print(details: DeviceDetails) -> None:
    device, group, names = details.device, details.group, pci_ids()
    kind = None if device.class_code is None else names.device_class(device.class_code)
    board = ""
    if details.subsystem_vendor_id is not None and details.subsystem_device_id is not None:
        board = f"{details.subsystem_vendor_id:04x}:{details.subsystem_device_id:04x}"
        board += f" {names.vendor(details.subsystem_vendor_id) or ''}".rstrip()
    functions, mediated = details.virtual_functions, details.mdev_type
    refusals = details.plan.refusals if details.plan else ()
    power = details.power_state
    if power and details.d3cold_allowed is not None:
        power += ", may lose power while idle" if details.d3cold_allowed else ", keeps power while idle"
    if group is None:
        about_group: list[tuple[str, object]] = [("group", f"none; {no_iommu() or NOT_COVERED}")]
    else:
        members = tuple(
            "  ".join(filter(None, [member.name, member.driver or "no driver", blocks, str(details.names[member])]))
            for member in group.devices
            for blocks in ["" if is_safe(member) else "blocks the group"]
        )
        kind_of_group = "made by VFIO" if group.is_made_by_vfio else group.type
        about_group = [
            ("group", f"{group.id}, {kind_of_group}, {'viable' if group.viable else 'not viable'}"),
            ("members", members),
            ("reserved", tuple(f"{r.start:#x}..{r.last:#x} ({r.type})" for r in group.reserved_regions)),
        ]
    print_pairs(
        (
            ("device", f"{device.name}  {names.describe(device)}".rstrip()),
            ("interfaces", " ".join(details.names[device].interfaces)),
            ("disks", " ".join(details.names[device].block_devices)),
            ("standing", details.standing),
            ("bus", device.subsystem),
            ("ids", records.ids(device)),
            ("class", f"{device.class_code:06x} {kind or ''}".rstrip() if device.class_code is not None else None),
            ("board", board),
            ("revision", records.hexadecimal(details.revision, 2)),
            ("driver", device.driver or "none"),
            ("driver_override", details.driver_override),
            ("vfio node", device.vfio_cdev or (f"none: {_no_node(device)}" if device.on_vfio else None)),
            ("NUMA node", device.numa_node),
            ("IOMMU", f"none: {dma}" if (dma := untranslated(device)) else device.iommu),
            ("DMA aliases", tuple(alias for alias in details.aliases if alias != device.name)),
            ("mediated", f"{mediated.id} of {mediated.parent.name}: {mediated.name}" if mediated else None),
            ("reset", " ".join(details.reset_methods) or ("no method" if device.subsystem == "pci" else None)),
            ("power", power),
            ("link", details.link),
            (
                "virtual functions",
                (f"{functions.count} of {functions.total}", *map(str, functions.devices)) if functions.total else None,
            ),
            ("physical function", details.physical_function),
            ("regions", tuple(f"{r.index}: {r.kind} {r.start:#x}, {_size(r.size)}" for r in details.regions)),
            *about_group,
            ("holders", tuple(map(str, details.holders)) or "none"),
            ("used by the host", tuple(refusal.reason for refusal in details.uses if refusal.kind != "unseen")),
            ("not seen", tuple(refusal.reason for refusal in details.uses if refusal.kind == "unseen")),
            ("a claim would", tuple(line.strip() for line in details.plan.outline) if details.plan else None),
            ("refused", (*(one.for_command() for one in refusals), *way_out(refusals))),
            ("no claim", details.no_plan),
        )
    )


def _no_node(device: HostDevice) -> object:
    return (no_noiommu_node(device) if device.without_iommu else None) or "this kernel has no cdevs"


def _size(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift and not size % (1 << shift):
            return f"{size >> shift} {unit}"
    return f"{size} bytes"
