"""What the reading commands print as JSON: each object's keys, which stay, and what they say.

Ids are hexadecimal digits as lspci prints them, addresses begin with 0x, sizes are numbers of bytes.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pyiommufd.host.claims.steps import FILE_ACTIONS, Action
from pyiommufd.host.discovery.pci_ids import pci_ids
from pyiommufd.host.overview.standing import Standing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyiommufd.errors import Cause, Refusal
    from pyiommufd.host.checks.finding import Finding
    from pyiommufd.host.claims.steps import Step
    from pyiommufd.host.discovery.devices import HostDevice
    from pyiommufd.host.discovery.groups import Group
    from pyiommufd.host.discovery.kernel_names import KernelNames
    from pyiommufd.host.holders import Holder

Record = dict[str, Any]

DEVICE = {
    "name": "its name on its bus",
    "subsystem": "its bus",
    "vendor_id": "PCI vendor, four hexadecimal digits, or null",
    "device_id": "PCI device, likewise",
    "class_code": "PCI class, subclass and interface, six hexadecimal digits, or null",
    "description": "vendor and device in words, or its class; without a PCI id database the class alone",
    "interfaces": "the names of its network interfaces, without those in another network namespace",
    "blocks": "the names of its disks, such as nvme0n1, without partitions",
    "driver": "the driver it is on, or null",
    "group": "the number of its IOMMU group, or null",
    "iommu": "the IOMMU that translates for it, or null",
    "numa_node": "its NUMA node, or null",
    "vfio_cdev": "its node under /dev/vfio/devices, or null",
    "standing": "how it stands to a claim: " + ", ".join(Standing),
    "physical_function": "the name of the device that it is a virtual function of, or null",
}
GROUP = {
    "id": "its number",
    "type": "its default domain, such as DMA-FQ",
    "made_by_vfio": "whether VFIO has made it, for a device without an IOMMU or a mediated one",
    "viable": "whether no member is on a host driver",
    "blockers": "the names of those members",
    "devices": "its members, as `list` prints devices",
    "reserved_regions": "addresses that mappings must avoid: start, last (inclusive), type",
}
HOLDER = {
    "pid": "the process",
    "command": "its command name",
    "node": "what it holds",
    "how": "by what: fd N, or mapping",
}
REFUSAL = {
    "device": "the name of the device",
    "kind": "the kind of refusal, as named to --force",
    "reason": "why, in a sentence",
    "fix": "what to do about it, a command; empty where the reason says it",
}
STEP = {
    "device": "the name of the device",
    "action": "what is done: " + ", ".join(action for action in Action if action not in FILE_ACTIONS),
    "value": "the driver, the override or the number, or null",
}
FINDING = {
    "check": "what was looked at, a stable name",
    "state": "ok, warning, missing or unknown",
    "summary": "what it is, in a sentence",
    "evidence": "what was seen",
    "fix": "what mends it, or empty",
    "devices": "the names of the devices concerned, or empty",
}
CAUSE = {
    "summary": "what is wrong, in a sentence",
    "evidence": "what was seen, or empty",
    "fix": "what to do about it, by a command where one does it, or empty",
}


def nested(name: str, keys: Mapping[str, str]) -> dict[str, str]:
    """The keys of an object, or of each object in an array, that is the value of a key."""
    return {f"{name}.{key}": text for key, text in keys.items()}


def device_record(device: HostDevice, standing: Standing, names: KernelNames) -> Record:
    """A device, by the keys of `DEVICE`."""
    physical = device.physical_function
    return {
        "name": device.name,
        "subsystem": device.subsystem,
        "vendor_id": hexadecimal(device.vendor_id, 4),
        "device_id": hexadecimal(device.device_id, 4),
        "class_code": hexadecimal(device.class_code, 6),
        "description": pci_ids().describe(device),
        "interfaces": list(names.interfaces),
        "blocks": list(names.block_devices),
        "driver": device.driver,
        "group": device.group_id,
        "iommu": device.iommu,
        "numa_node": device.numa_node,
        "vfio_cdev": device.vfio_cdev,
        "standing": str(standing),
        "physical_function": None if physical is None else physical.name,
    }


def group_record(
    group: Group, standing: Mapping[HostDevice, Standing], names: Mapping[HostDevice, KernelNames]
) -> Record:
    """A group, by the keys of `GROUP`."""
    return {
        "id": group.id,
        "type": group.type,
        "made_by_vfio": group.is_made_by_vfio,
        "viable": group.viable,
        "blockers": [device.name for device in group.blockers],
        "devices": [device_record(device, standing[device], names[device]) for device in group.devices],
        "reserved_regions": [
            {"start": f"{region.start:#x}", "last": f"{region.last:#x}", "type": region.type}
            for region in group.reserved_regions
        ],
    }


def holder_record(holder: Holder) -> Record:
    """A holder, by the keys of `HOLDER`."""
    return asdict(holder)


def refusal_record(refusal: Refusal) -> Record:
    """What the host does with a device, by the keys of `REFUSAL`."""
    return {
        "device": refusal.device,
        "kind": refusal.kind,
        "reason": refusal.reason,
        "fix": refusal.command or refusal.fix,
    }


def step_record(step: Step) -> Record:
    """What a claim does to a device, by the keys of `STEP`."""
    return {"device": step.target, "action": str(step.action), "value": step.value}


def finding_record(finding: Finding) -> Record:
    """A finding, by the keys of `FINDING`."""
    return asdict(finding) | {"state": str(finding.state), "devices": list(finding.devices)}


def cause_record(cause: Cause) -> Record:
    """A cause, by the keys of `CAUSE`."""
    return {"summary": cause.summary, "evidence": cause.evidence, "fix": cause.command or cause.fix}


def hexadecimal(number: int | None, digits: int) -> str | None:
    """An id as lspci prints it."""
    return None if number is None else f"{number:0{digits}x}"


def ids(device: HostDevice) -> str | None:
    """Vendor and device as ``1234:11e8``; None for what is no PCI device."""
    if device.vendor_id is None or device.device_id is None:
        return None
    return f"{device.vendor_id:04x}:{device.device_id:04x}"


def in_words(device: HostDevice, names: KernelNames) -> str:
    """What a device is to the host, and what it is: ``eth0: Intel Corporation 82574L``; or as much as is known."""
    return ": ".join(filter(None, [str(names), pci_ids().describe(device)]))
