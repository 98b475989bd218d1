"""What a claim would change, said before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyiommufd.errors import ClaimError, DeviceNotFoundError, Fix, Refusal
from pyiommufd.host import drivers, uses
from pyiommufd.host.checks.bindable import bind_refusals
from pyiommufd.host.claims.members import is_left_as_is, parents_among
from pyiommufd.host.claims.refusals import blocked_devices, bound_elsewhere, claimed_refusals, holder_refusals
from pyiommufd.host.claims.restore import device_state, restore_steps
from pyiommufd.host.claims.steps import Action, Report, Step, device_step
from pyiommufd.host.discovery.devices import HostDevice, as_devices
from pyiommufd.host.discovery.groups import Group
from pyiommufd.host.discovery.vfs import vfs_of
from pyiommufd.host.uses.folders import devices_below
from pyiommufd.host.uses.snapshot import MachineSnapshot
from pyiommufd.printable import OneLine, counted, listed

if TYPE_CHECKING:
    from pyiommufd.host.claims.claim import Claim
    from pyiommufd.host.users import User


@dataclass(frozen=True, slots=True, repr=False)
class Move(OneLine):
    """What a claim does with one device.

    Attributes:
        device: The device, as it is now.
        driver: The driver that it will be on; None: it is left without one, as vfio-pci takes no bridges.
        vfs: Its virtual functions, which go away: vfio-pci takes no physical function that has any.
        below: The devices that its driver has made below it, such as the drives behind Intel's VMD, which go away when
            it leaves that driver. No step brings them back: once it is given back, its driver finds them anew, as at
            boot, and each goes to the driver that the kernel picks, also where somebody had put it on another one.
    """

    device: HostDevice
    driver: str | None
    vfs: tuple[HostDevice, ...] = ()
    below: tuple[HostDevice, ...] = ()

    @property
    def gone(self) -> tuple[HostDevice, ...]:
        """The devices that go away with it: `vfs` and `below`, each once."""
        return tuple(dict.fromkeys([*self.vfs, *self.below]))

    @property
    def gone_outline(self) -> tuple[str, ...]:
        """What goes away and with whom, a line each."""
        whose = dict.fromkeys(self.below, f"its parent {self.device.name}")
        whose |= dict.fromkeys(self.vfs, "its physical function")
        return tuple(f"{one.name}: {one.driver or 'no driver'} -> gone, with {whose[one]}" for one in self.gone)

    @property
    def loses(self) -> str | None:
        """The driver that it is on now, and leaves."""
        return self.device.driver

    def __str__(self) -> str:
        before = self.device.driver or "no driver"
        return f"{self.device.name}: {before} -> {self.driver or 'no driver'}"

    def _line(self) -> str:
        gone = f", {listed(self.gone)} gone with it" if self.gone else ""
        return f"{self}{gone}"

    def steps(self) -> Iterator[Step]:
        """What is done to the machine, in order."""
        if self.vfs:
            yield device_step(self.device, Action.SET_VFS, "0")
        if self.driver is not None:
            # The override first: a device between drivers is then not probed by its old one.
            yield device_step(self.device, Action.SET_OVERRIDE, self.driver)
        if self.device.driver is not None:
            yield device_step(self.device, Action.UNBIND, self.device.driver)
        if self.driver is not None:
            yield device_step(self.device, Action.BIND, self.driver)


@dataclass(frozen=True, slots=True, repr=False)
class ClaimPlan(OneLine):
    """What it takes to make whole IOMMU groups free for iommufd. Made by `plan_claim`; changes nothing itself.

    Attributes:
        devices: The devices that were asked for.
        groups: Their IOMMU groups.
        moves: Each device that changes its driver, in the order in which it is done.
        stays: Members that are left as they are, being safe beside a bound device.
        refusals: What speaks against it and was not named to ``force``.
        force: The kinds of refusals that the plan overrides.
        driver: The vfio driver that the devices asked for were to have; None: each the one that is chosen by itself.
        steps: Every single change to the devices that `apply` makes, in order.
        undo: The steps that undo them, in order.
        forced: What speaks against it and was named to ``force``.
    """

    devices: tuple[HostDevice, ...]
    groups: tuple[Group, ...]
    moves: tuple[Move, ...]
    stays: tuple[HostDevice, ...]
    refusals: tuple[Refusal, ...]
    force: frozenset[str] = frozenset()
    driver: str | None = None
    steps: tuple[Step, ...] = ()
    undo: tuple[Step, ...] = ()
    forced: tuple[Refusal, ...] = ()

    @property
    def _names(self) -> set[str]:
        """The names of all devices that it is about."""
        return _names(self._members, self.moves)

    @property
    def _members(self) -> list[HostDevice]:
        return _members(self.groups, self.devices)

    @property
    def companions(self) -> tuple[HostDevice, ...]:
        """Devices affected by the claim though not requested: group members, and devices removed along with them."""
        gone = [device for move in self.moves for device in move.gone]
        return tuple(device for device in dict.fromkeys([*self._members, *gone]) if device not in self.devices)

    @property
    def endpoints(self) -> tuple[HostDevice, ...]:
        """The devices that are in the groups, or in none, once the claim is made, but for bridges."""
        gone = {device for move in self.moves for device in move.gone}
        # What stays on no driver is a bridge, of whatever kind.
        gone |= {device for device in self.stays if device.driver is None}
        return tuple(device for device in self._members if not device.is_bridge and device not in gone)

    @property
    def undo_commands(self) -> tuple[str, ...]:
        """The lines of a shell, to be run as root, that undo the claim by hand."""
        return tuple(step.command for step in self.undo)

    def apply(
        self,
        *,
        keep: bool = False,
        persist: bool = False,
        user: User | str | int | None = None,
        report: Report | None = None,
    ) -> Claim:
        """Carry the plan out, all of it or nothing.

        SIGINT and SIGTERM, where this is called from the main thread, undo what has been done and take effect then.

        Args:
            keep: The claim outlives this process, and its ``with`` block, until `pyiommufd.release` ends it.
            persist: It is made again at every boot, by a systemd unit where there is systemd. Only with ``keep``, and
                of PCI devices.
            user: This user, too, may open ``/dev/iommu`` and the nodes of the devices that were asked for, while the
                claim lasts: a name, a number, or what `pyiommufd.host.users.find_user` returned.
            report: Called with each step before it is taken, and with those of a roll-back. What it raises ends the
                claim like a step that fails; in a roll-back it is logged, and no more is told.

        Returns:
            The claim, a context manager that gives everything back.

        Raises:
            ClaimRefusedError: The host uses one of the devices, or another claim has it.
            ClaimError: A step failed, there is no such user, or the caller is not root; what had been done is undone.
            DeviceNotFoundError: A device has gone since the plan was made.
            ValueError: ``persist`` without ``keep``.
        """
        from pyiommufd.host.claims.claim import carry_out  # here, as most plans are only shown

        return carry_out(self, keep=keep, persist=persist, user=user, report=report)

    def _recomputed(self) -> ClaimPlan:
        """The same plan over the machine as it is now.

        What the caller was shown is what is done: where the groups have other members by now, or a member another
        driver, the plan has to be made, and seen, again.

        Raises:
            ClaimError: The machine has changed.
        """
        now = plan_claim(self.devices, driver=self.driver, force=self.force)
        if now.outline != self.outline or now.steps != self.steps:
            raise ClaimError(f"the machine has changed since the plan was made; plan again. Now:\n{now}")
        return now

    @property
    def outline(self) -> tuple[str, ...]:
        """The groups and what becomes of each member, a line each."""
        moves = {move.device: move for move in self.moves}
        gone = {device for move in self.moves for device in move.gone}
        lines = []
        members: list[tuple[str, Iterable[HostDevice]]] = [(f"group {one.id}:", one.devices) for one in self.groups]
        if ungrouped := [device for device in self.devices if device.group_id is None]:
            members.append(("no group:", ungrouped))
        for title, devices in members:
            lines.append(title)
            for device in (device for device in devices if device not in gone):
                move = moves.get(device)
                text = str(move or f"{device.name}: stays on {device.driver or 'no driver'}")
                lines.append(f"  {text}{'' if device in self.devices else '  (companion)'}")
                lines += [f"    {text}  (companion)" for text in (move.gone_outline if move else ())]
        return tuple(lines)

    def __str__(self) -> str:
        return "\n".join([*self.outline, *(f"refused: {refusal}" for refusal in self.refusals)])

    def _line(self) -> str:
        parts = [f"of {listed(self.devices)}: {counted(len(self.moves), 'move')}"]
        if self.companions:
            parts.append(counted(len(self.companions), "companion"))
        if self.refusals:
            parts.append(f"refused for {listed([f'{one.device} [{one.kind}]' for one in self.refusals], 2)}")
        return ", ".join(parts)


def plan_claim(
    devices: Iterable[HostDevice | str | Path] | HostDevice | str | Path,
    *,
    driver: str | None = None,
    force: Collection[str] = (),
) -> ClaimPlan:
    """Plan how to take devices, and with them their whole IOMMU groups, from the host.

    Args:
        devices: What to claim: `HostDevice` objects, names or paths; or one of these.
        driver: The vfio driver for these, such as ``vfio-pci`` where a variant driver is not wanted, with dashes or
            underscores; also for one that is on another vfio driver. Other members of the groups get the one that is
            chosen by default; with None all do (`pyiommufd.host.drivers.vfio_driver_for`).
        force: The kinds of refusals to override (`Refusal.kind`), such as
            ``mounted``. Each has to be named.

    Raises:
        ClaimError: No vfio driver takes a device; or the driver that was named is not available here, or is not one of
            vfio's.
        DeviceNotFoundError: There is no such device.
        TypeError: The name of the driver is not a string, or what was named is no device.
        ValueError: No device was named, or a kind that cannot be forced.
    """
    return plan_by(MachineSnapshot(thorough=True), devices, driver=driver, force=force)


def plan_by(
    snapshot: MachineSnapshot,
    devices: Iterable[HostDevice | str | Path] | HostDevice | str | Path,
    *,
    driver: str | None = None,
    force: Collection[str] = (),
) -> ClaimPlan:
    """The same, by a thorough look at the machine that others go by as well.

    Raises:
        ClaimError, DeviceNotFoundError, TypeError, ValueError: As for `plan_claim`.
    """
    kinds = uses.forced(force)
    wanted = as_devices(devices)
    if not wanted:
        raise ValueError("no device to claim was named")
    groups, moves, stays = _moves(wanted, driver)
    refusals = tuple(_refusals(snapshot, wanted, groups, moves))
    return ClaimPlan(
        devices=wanted,
        groups=groups,
        moves=moves,
        stays=stays,
        refusals=tuple(refusal for refusal in refusals if refusal.kind not in kinds),
        force=kinds,
        driver=driver,
        steps=tuple(_steps(moves)),
        undo=tuple(_undo(moves)),
        forced=tuple(refusal for refusal in refusals if refusal.kind in kinds),
    )


def claim_obstacle(device: HostDevice) -> str | None:
    """Why there can be no claim of a device, whatever is forced, as `plan_claim` says it; None: there can be one."""
    try:
        _moves((device,), None)
    except (ClaimError, DeviceNotFoundError) as error:
        return str(error)
    return None


def _moves(
    wanted: Collection[HostDevice], driver: str | None
) -> tuple[tuple[Group, ...], tuple[Move, ...], tuple[HostDevice, ...]]:
    """The groups of the devices wanted, the members that change their driver, and those that stay.

    Raises:
        ClaimError: They cannot be claimed.
    """
    groups: dict[int, Group] = {}
    for device in wanted:
        group = device.group
        if group is not None:
            groups[group.id] = group
    moves: list[Move] = []
    stays = []
    members = _members(groups.values(), wanted)
    gone = _gone(members, wanted)
    for device in (device for device in members if device not in gone):
        named = drivers.vfio_driver_for(device, driver) if driver is not None and device in wanted else None
        if is_left_as_is(device, device in wanted) and named in (None, device.driver):
            stays.append(device)
            continue
        if device in wanted and device.is_bridge:
            raise ClaimError(f"{device.name} is a bridge: vfio-pci takes none; name a device behind it")
        below = tuple(sorted(devices_below(device), key=str))
        if mediated := [one.name for one in below if one.is_mediated]:
            raise ClaimError(
                f"{device.name} is the parent of the mediated devices {', '.join(mediated)}: they would be "
                "destroyed, and could not be restored; remove them first",
                Fix("remove_mdev() does", "pyiommufd mdev remove does"),
            )
        target = None if device.is_bridge else named or drivers.vfio_driver_for(device)
        moves.append(Move(device, target, vfs_of(device).devices, below))
    # Endpoints before bridges, so that giving back, the other way round, has the bridges at work first.
    moves.sort(key=lambda move: move.device.is_bridge)
    return tuple(groups.values()), tuple(moves), tuple(stays)


def _gone(members: Collection[HostDevice], wanted: Collection[HostDevice]) -> set[HostDevice]:
    """The members that go away with another member, and so are no concern of the claim's own.

    Raises:
        ClaimError: One of them is wanted itself.
    """
    parents = parents_among(members, wanted)
    functions = {
        function: device
        for device in members
        if device not in parents and not is_left_as_is(device, device in wanted)
        for function in vfs_of(device).devices
    }
    for device in wanted:
        if device in functions:
            raise ClaimError(
                f"{device.name} is a virtual function of {functions[device].name}, which would be claimed as well, and "
                "have none then; claim one of them"
            )
        if device in parents:
            parent = parents[device]
            raise ClaimError(
                f"{device.name} goes away with {parent.name}, which would be claimed as well and leave its driver "
                f"{parent.driver}; claim {parent.name}"
            )
    return {*parents, *functions}


def _refusals(
    snapshot: MachineSnapshot, wanted: Iterable[HostDevice], groups: Collection[Group], moves: Sequence[Move]
) -> Iterator[Refusal]:
    members = _members(groups, wanted)
    # Two records of one device could not both be restored: nothing forces this.
    yield from claimed_refusals(_names(members, moves))
    # The uses of what is below a device are among its own; virtual functions are beside it.
    moved = [device for move in moves for device in (move.device, *move.vfs)]
    yield from uses.refusals_by(snapshot, moved)
    yield from bind_refusals(wanted)
    # A process that holds one member owns the group: the group can then be neither bound nor partly released.
    held = dict.fromkeys([*moved, *(device for device in members if device.on_vfio)])
    yield from holder_refusals(held, snapshot.processes)
    yield from bound_elsewhere(members, snapshot.processes)


def _members(groups: Iterable[Group], wanted: Iterable[HostDevice]) -> list[HostDevice]:
    """The devices of the groups, and those wanted that are in none."""
    members = [device for group in groups for device in group.devices]
    return members + [device for device in wanted if device.group_id is None]


def _names(members: Iterable[HostDevice], moves: Iterable[Move]) -> set[str]:
    return {device.name for device in members} | {device.name for move in moves for device in (move.device, *move.gone)}


def _steps(moves: Sequence[Move]) -> Iterator[Step]:
    seen = set()
    for move in moves:
        device, driver = move.device, move.driver
        if driver is None or (device.subsystem, driver) in seen:
            continue
        seen.add((device.subsystem, driver))
        if not drivers.is_loaded(device.subsystem, driver):
            yield device_step(device, Action.LOAD_DRIVER, driver)
    for move in moves:
        yield from move.steps()


def _undo(moves: Sequence[Move]) -> Iterator[Step]:
    blocked = blocked_devices()
    for move in reversed(moves):
        if not blocked.isdisjoint(device.name for device in (move.device, *move.gone)):
            continue  # reading its attributes would block as well; the plan is refused, since the device is claimed
        before = device_state(move.device.sys_path)
        if before is None:
            continue
        override = before.driver_override if move.driver is None else move.driver
        count = None if before.numvfs is None else 0
        yield from restore_steps(
            before, replace(before, driver=move.driver, driver_override=override, numvfs=count, vfs=[])
        )
