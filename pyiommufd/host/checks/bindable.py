"""What would make the kernel refuse every bind of a device, as far as it is known before a claim.

A claim whose binds all fail would still take the device from the host, so it is refused, with the kinds ``noiommu``,
``isolated-msi``, ``reserved`` and ``cdev``. They can be forced, for example for a user of the legacy group node. What
cannot be determined on this machine is not a reason to refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyiommufd.errors import Refusal
from pyiommufd.host.checks.lacks import KERNEL, NOT_COVERED, no_iommu
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.groups import reserved_regions
from pyiommufd.host.running_kernel import has_cdevs, interrupts_refused

_INTERRUPTS = (
    "every bind is refused, as devices can raise each other's interrupts: turn interrupt remapping on in the firmware, "
    "or accept that by iommufd.allow_unsafe_interrupts=1"
)
_NO_CDEVS = f"it cannot be bound, as this kernel gives vfio devices no nodes of their own: {KERNEL}"


def bind_refusals(devices: Iterable[HostDevice]) -> Iterator[Refusal]:
    """Why binds of these devices would be refused, by kind (`pyiommufd.host.uses.KINDS`)."""
    everywhere = dict(machine_obstacles())
    for device in devices:
        if device.group_id is None:
            lack = no_iommu() or NOT_COVERED
            yield Refusal(device.name, "noiommu", lack.summary, lack.fix)
            continue
        for kind, reason in everywhere.items():
            yield Refusal(device.name, kind, reason)
        if firmware := firmware_regions(device.group_id):
            reason = (
                f"every bind is refused, as firmware keeps memory mapped for IOMMU group {device.group_id} "
                f"({firmware}): see whether its setup can release it"
            )
            yield Refusal(device.name, "reserved", reason)


def machine_obstacles() -> Iterator[tuple[str, str]]:
    """What stands in the way of every bind on this machine: the kind, and a sentence for people."""
    if interrupts_refused():
        yield "isolated-msi", _INTERRUPTS
    if has_cdevs() is False:
        yield "cdev", _NO_CDEVS


def firmware_regions(group_id: int) -> str:
    """What firmware wants mapped one to one for a group (RMRR, IVMD), for a sentence; empty: nothing.

    The kernel refuses a group that has any (Linux 7.3, drivers/iommu/iommu.c, ``require_direct``).
    """
    return ", ".join(f"{one.start:#x}..{one.last:#x}" for one in reserved_regions(group_id, "direct"))
