"""What speaks against taking devices, whoever wants them: claims that have them, and processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from pyiommufd.errors import NEVER_FORCED, Refusal
from pyiommufd.host import sysfs
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimRecord
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.holders import holders_among
from pyiommufd.host.namespaces import sees_all_processes
from pyiommufd.host.uses.processes import Processes


def blocked_devices() -> set[str]:
    """The names of devices for which a claim's sysfs write blocks in the kernel, as far as this user may read."""
    return {name for record in journal.readable_records() for name in record.stuck}


def claimed_refusals(names: Collection[str], *, but: Callable[[ClaimRecord], bool] | None = None) -> Iterator[Refusal]:
    """The devices that a claim has already, as far as this user may know; ``but``: which claims are no reason."""
    for record in journal.readable_records():
        if but is not None and but(record):
            continue
        for name in sorted(record.names & set(names)):
            reason = f"it is claimed already, by {journal.describe_owner(record)}"
            yield Refusal(name, NEVER_FORCED, reason, *(journal.way_to_release(record) or ()))


def holder_refusals(devices: Collection[HostDevice], processes: Processes) -> Iterator[Refusal]:
    """The devices that a process has open, or whose group's node it has."""
    for device in devices:
        yield from (Refusal(device.name, "held", str(holder)) for holder in holders_among(processes, [device]))


def bound_elsewhere(devices: Iterable[HostDevice], processes: Processes) -> Iterator[Refusal]:
    """Devices bound by a process that is not visible from here; its claim may be recorded in another namespace."""
    if sees_all_processes():
        return
    for device in devices:
        # vfio-pci enables a device when it is bound and no longer (Linux 7.3, drivers/vfio/pci/vfio_pci_core.c,
        # vfio_pci_core_enable).
        is_bound = device.on_vfio and sysfs.read(device.sys_path / "enable") not in (None, "0")
        if is_bound and not holders_among(processes, [device]):
            reason = "it is bound by a process that is not visible here: look from the host"
            yield Refusal(device.name, "held", reason)
