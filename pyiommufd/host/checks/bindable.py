"""What would make the kernel refuse every bind of a device, as far as it is known before a claim.

A claim whose binds all fail would still take the device from the host, so it is refused, with the kinds ``noiommu``,
``isolated-msi``, ``reserved`` and ``cdev``. They can be forced, and each says what is refused then all the same. What
cannot be determined on this machine is not a reason to refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyiommufd.errors import Refusal
from pyiommufd.host.checks.lacks import KERNEL, NOT_COVERED, no_iommu, no_noiommu_mode, no_noiommu_node
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.groups import reserved_regions
from pyiommufd.host.running_kernel import has_cdevs, interrupts_refused

_INTERRUPTS = (
    "every bind is refused, as devices can raise each other's interrupts: turn interrupt remapping on in the firmware, "
    "or accept that by iommufd.allow_unsafe_interrupts=1"
)
_NO_CDEVS = f"it cannot be bound, as this kernel gives vfio devices no nodes of their own: {KERNEL}"

# VFIO's groups are refused likewise: vfio_iommu_type1 asks for interrupts of its own, and a group with memory that is
# kept gets no owner in user space (Linux 7.3, drivers/iommu/iommu.c, __iommu_device_set_domain).
_LEAVES = {
    "noiommu": "with noiommu forced, DMA of the device reaches all of memory, and to open it takes CAP_SYS_RAWIO",
    "isolated-msi": (
        "with isolated-msi forced, binds are refused until iommufd.allow_unsafe_interrupts is 1 (for users of VFIO's "
        "groups, vfio_iommu_type1.allow_unsafe_interrupts)"
    ),
    "reserved": "with reserved forced, binds are refused all the same, as those through VFIO's groups are",
    "cdev": "with cdev forced, it is of use through VFIO's groups only (/dev/vfio/NUMBER)",
}
"""What forcing each kind does not get out of the way."""


def bind_refusals(devices: Iterable[HostDevice]) -> Iterator[Refusal]:
    """Why binds of these devices would be refused, by kind (`pyiommufd.host.uses.KINDS`)."""
    everywhere = dict(machine_obstacles())
    for device in devices:
        if device.is_mediated:  # no IOMMU is before it, and its bind asks for none
            if "cdev" in everywhere:
                yield Refusal(device.name, "cdev", everywhere["cdev"], leaves=_LEAVES["cdev"])
            continue
        if device.without_iommu or device.group_id is None:
            yield _without_iommu(device)
            continue
        for kind, reason in everywhere.items():
            yield Refusal(device.name, kind, reason, leaves=_LEAVES[kind])
        if firmware := firmware_regions(device.group_id):
            reason = (
                f"every bind is refused, as firmware keeps memory mapped for IOMMU group {device.group_id} "
                f"({firmware}): see whether its setup can release it"
            )
            yield Refusal(device.name, "reserved", reason, leaves=_LEAVES["reserved"])


def _without_iommu(device: HostDevice) -> Refusal:
    lack, mode, leaves = no_iommu() or NOT_COVERED, no_noiommu_mode(), _LEAVES["noiommu"]
    # A vfio driver that has it keeps it when the mode is turned off.
    first = "" if mode is None or device.on_vfio else f"vfio's enable_unsafe_noiommu_mode is on ({mode.fix})"
    if (node := no_noiommu_node(device)) is not None:
        leaves = f"{leaves}; {node}"
    return Refusal(device.name, "noiommu", lack.summary, lack.fix, needs=first, leaves=leaves)


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
