"""Why the kernel refuses to put a device on a driver or to take it from one (Linux 7.3: drivers/pci, drivers/vfio)."""

from __future__ import annotations

import errno

from pyiommufd.errors import Cause, DeviceNotFoundError, Fix
from pyiommufd.host import sysfs
from pyiommufd.host.checks.lacks import NOT_COVERED, no_iommu, no_noiommu_mode
from pyiommufd.host.claims.steps import Action, Step
from pyiommufd.host.discovery.devices import from_sys_path
from pyiommufd.host.rows import Row, Rows, Subject, causes_found

_BIND, _UNBIND = "sysfs bind", "sysfs unbind"
_REQUESTS = {Action.BIND: _BIND, Action.UNBIND: _UNBIND}


def step_causes(step: Step, code: int | None) -> tuple[Cause, ...]:
    """What this machine shows of why a step was refused; where it shows nothing, what may be the reason.

    Args:
        step: The step.
        code: The errno; None: it was not the kernel that refused.
    """
    rows = STEPS.get((_REQUESTS.get(step.action, ""), code or 0), ())
    try:
        device = from_sys_path(step.folder)
        seen = causes_found(rows, Subject(device, device.group, driver=step.value))
    except DeviceNotFoundError:
        return ()
    return seen.found or seen.possible


def _bridge(subject: Subject) -> tuple[Cause, ...]:
    if not subject.device.is_bridge:
        return ()
    summary = f"{subject.device.name} is a bridge: vfio-pci takes none"
    return (Cause(summary, "its header is a bridge's: it has a secondary_bus_number", "name a device behind it"),)


def _no_group(subject: Subject) -> tuple[Cause, ...]:
    mode = no_noiommu_mode()
    if not subject.device.without_iommu or mode is None:
        return ()
    return tuple(Cause(lack.summary, lack.evidence, lack.fix) for lack in (mode, no_iommu() or NOT_COVERED))


def _virtual_functions(subject: Subject) -> tuple[Cause, ...]:
    count = sysfs.read(subject.device.sys_path / "sriov_numvfs")
    if count in (None, "0"):
        return ()
    summary = f"{subject.device.name} has virtual functions"
    return (Cause(summary, f"sriov_numvfs is {count}", "remove them first: echo 0 > sriov_numvfs"),)


def _owned(subject: Subject) -> tuple[Cause, ...] | None:
    return subject.causes(
        Cause("the IOMMU group belongs to user space until its devices are closed", str(holder), "end that use")
        for holder in subject.others(*subject.members)
    )


def _no_match(subject: Subject) -> tuple[Cause, ...] | None:
    override = sysfs.read(subject.device.sys_path / "driver_override")
    if override in (None, "", "(null)"):
        return None
    if override == subject.driver:
        return ()
    summary = f"{subject.device.name} takes the driver {override} only"
    return (Cause(summary, f"driver_override is {override}", "bind that one, or clear driver_override"),)


STEPS: Rows = {
    (_BIND, errno.ENODEV): (
        Row("the driver does not take this device by itself",
            Fix("set driver_override first, as plan_claim() does",
                "set driver_override first, as pyiommufd claim does"),
            _no_match),
    ),
    (_BIND, errno.EINVAL): (
        Row("it is a bridge", "name a device behind it", _bridge),
        Row("no IOMMU covers the device", "turn the IOMMU on; pyiommufd check says how", _no_group),
        Row("the IOMMU does not keep its DMA coherent with the caches, or vfio-pci lists it as unfit",
            "the device cannot be passed through; of what vfio-pci lists: vfio_pci.disable_denylist=1"),
    ),
    (_BIND, errno.EBUSY): (
        Row("it has virtual functions", "remove them first: echo 0 > sriov_numvfs", _virtual_functions),
        Row("its IOMMU group belongs to user space", "end that use", _owned),
    ),
    (_UNBIND, errno.ENODEV): (Row("the device is not on that driver", "look the device up anew"),),
}  # fmt: skip
"""Every reason for a refused change of driver."""
