"""Rebinds devices that another tool left on vfio-pci, pci-stub or no driver to their host drivers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.errors import ClaimError, ClaimRefusedError, Refusal
from pyiommufd.host import drivers, sysfs, uses
from pyiommufd.host.claims.record import ClaimRecord
from pyiommufd.host.claims.refusals import blocked_devices, bound_elsewhere, claimed_refusals
from pyiommufd.host.claims.steps import Action, Report, Step, device_step
from pyiommufd.host.claims.transaction import Transaction, exclusive_access
from pyiommufd.host.claims.vfs import vfs_refusals_by, vfs_steps
from pyiommufd.host.discovery.devices import HostDevice, as_devices
from pyiommufd.host.discovery.vfs import vfs_of
from pyiommufd.host.holders import holders_among
from pyiommufd.host.uses.snapshot import MachineSnapshot
from pyiommufd.printable import OneLine, counted, listed


@dataclass(frozen=True, slots=True, repr=False)
class RebindPlan(OneLine):
    """What it takes to have devices go back to their host drivers. Made by `plan_rebind`; changes nothing itself.

    Attributes:
        devices: The devices that were asked for, each after the bridges that it is behind.
        on_host_driver: Those of them that are on a host driver already: nothing is done with them.
        steps: Every single change to the machine that `apply` makes, in order. The value of the last one of a device
            says which drivers announce it, as far as the kernel's module aliases have them.
        refusals: What speaks against it and was not named to ``force``.
        force: The kinds of refusals that the plan overrides.
    """

    devices: tuple[HostDevice, ...]
    on_host_driver: tuple[HostDevice, ...]
    steps: tuple[Step, ...]
    refusals: tuple[Refusal, ...]
    force: frozenset[str] = frozenset()

    def _line(self) -> str:
        refused = f", refused for {listed([one.device for one in self.refusals])}" if self.refusals else ""
        return f"of {listed(self.devices)}: {counted(len(self.steps), 'step')}{refused}"

    def apply(self, *, report: Report | None = None) -> tuple[HostDevice, ...]:
        """Carry the plan out, each device by itself: those before one that fails stay on their host drivers.

        The host may be at work with them by then. A device that fails, or is interrupted, is as it was before.
        SIGINT and SIGTERM, where this is called from the main thread, take effect then.

        Args:
            report: Called with each step before it is taken, and with those of a roll-back.

        Returns:
            The devices as they are then.

        Raises:
            ClaimRefusedError: A process, a claim or the host uses one of the devices; nothing is done.
            ClaimError: No host driver takes a device, another step failed, or the caller is not root.
            DeviceNotFoundError: A device has gone since the plan was made.
        """
        with exclusive_access() as access:
            now = plan_rebind(self.devices, force=self.force)
            if now.steps != self.steps:
                raise ClaimError("the machine has changed since the plan was made; plan again")
            if now.refusals:
                raise ClaimRefusedError(now.refusals, "the rebind")
            for device in (device for device in now.devices if device not in now.on_host_driver):
                steps = [step for step in now.steps if step.target == device.name]
                work = Transaction(access, ClaimRecord.begin(), report, force=self.force)
                work.carry_out(steps, f"the rebind of {device.name}")
        return tuple(device.refreshed() for device in self.devices)


def plan_rebind(
    devices: Iterable[HostDevice | str | Path] | HostDevice | str | Path, *, force: Collection[str] = ()
) -> RebindPlan:
    """Plan how to have devices go back to the host drivers that they would have by themselves.

    Those are what the kernel picks by the device's ids where no override is set, of all drivers but those that keep a
    device for somebody else. An override is cleared, and virtual functions go away with the driver that made them.

    Args:
        devices: What is to go back: `HostDevice` objects, names or paths; or one of these.
        force: The kinds of refusals to override, as of `plan_claim`.

    Raises:
        ClaimError: A device has no host driver to go to by its kind, or would go away with another one of these.
        DeviceNotFoundError: There is no such device.
        ValueError: No device was named, or a kind that cannot be forced.
    """
    kinds = uses.forced(force)
    # By their folders: a bridge comes before what is behind it.
    wanted = sorted(as_devices(devices), key=lambda device: str(device.sys_path))
    if not wanted:
        raise ValueError("no device to rebind was named")
    on_host_driver = [device for device in wanted if drivers.is_on_host_driver(device)]
    moved = [device for device in wanted if device not in on_host_driver]
    functions = {function: device for device in moved if device.driver for function in vfs_of(device).devices}
    for device in wanted:
        if device in functions:
            raise ClaimError(
                f"{device.name} is a virtual function of {functions[device].name}, which would have none once it has "
                "left its driver; name one of them"
            )
    for device in moved:
        _check_kind(device)
    return RebindPlan(
        devices=tuple(wanted),
        on_host_driver=tuple(on_host_driver),
        steps=tuple(step for device in moved for step in _steps(device)),
        refusals=tuple(dict.fromkeys(refusal for device in moved for refusal in _refusals(device, kinds))),
        force=kinds,
    )


def _check_kind(device: HostDevice) -> None:
    """Whether there can be a host driver for the device at all.

    Raises:
        ClaimError: There can be none.
    """
    if device.subsystem not in drivers.GENERAL:
        raise ClaimError(f"{device.name}: devices of the bus {device.subsystem!r} have no other driver to go back to")
    physical = device.physical_function
    # The kernel then has none but an override's driver probe it (7.3, drivers/pci/pci-driver.c, pci_device_can_probe).
    if physical is not None and sysfs.read(physical.sys_path / "sriov_drivers_autoprobe") == "0":
        raise ClaimError(
            f"{device.name} is a virtual function of {physical}, whose sriov_drivers_autoprobe is 0: "
            f"no driver takes it by itself; to change that: echo 1 > {physical.sys_path}/sriov_drivers_autoprobe"
        )


def _steps(device: HostDevice) -> Iterator[Step]:
    if device.name in blocked_devices():
        return  # reading its attributes would block; the plan is refused, since the device is claimed
    if drivers.driver_override(device) is not None:
        yield device_step(device, Action.CLEAR_OVERRIDE)
    if device.driver is not None:
        yield from vfs_steps(device, 0)
        yield device_step(device, Action.UNBIND, device.driver)
    yield device_step(device, Action.PROBE, ", ".join(drivers.host_drivers_for(device)) or None)


def _refusals(device: HostDevice, force: frozenset[str]) -> Iterator[Refusal]:
    group = device.group
    members = {device, *(() if group is None else group.devices)}
    # With a member on a host driver, a claim of the group would be of no use any more: nothing forces this.
    yield from claimed_refusals({member.name for member in members})
    snapshot = MachineSnapshot(thorough=True)
    yield from (refusal for refusal in uses.refusals_by(snapshot, [device]) if refusal.kind not in force)
    if device.driver is not None:
        yield from vfs_refusals_by(snapshot, device, 0, force=force)
    if "held" not in force:
        # The kernel lets no host driver into a group that somebody has bound. A bridge's does no DMA of its own.
        concerned = [device] if device.is_bridge else list(members)
        for holder in holders_among(snapshot.processes, concerned):
            whose = "" if holder.node == device.vfio_cdev else "its IOMMU group is in use: "
            yield Refusal(device.name, "held", f"{whose}{holder}")
        yield from bound_elsewhere(concerned, snapshot.processes)
