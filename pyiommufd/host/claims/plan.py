"""What a claim would change, said before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ClaimError, Refusal
from .. import drivers, sysfs, uses
from ..devices import HostDevice, as_device
from ..groups import Group, is_safe
from ..holders import holders
from . import journal
from .restore import look, steps_back
from .steps import Action, Step
from .vfs import vfs_of

if TYPE_CHECKING:
    from .claim import Claim


@dataclass(frozen=True, slots=True)
class Move:
    """What a claim does with one device.

    Attributes:
        device: The device, as it is now.
        driver: The driver that it will be on; None: it is left without one, as vfio-pci takes no bridges.
        vfs: Its virtual functions, which go away: vfio-pci takes no physical function that has any.
    """

    device: HostDevice
    driver: str | None
    vfs: tuple[HostDevice, ...] = ()

    @property
    def loses(self) -> str | None:
        """The driver that it is on now, and leaves."""
        return self.device.driver

    def __str__(self) -> str:
        before = self.device.driver or "no driver"
        return f"{self.device.name}: {before} -> {self.driver or 'no driver'}"

    def steps(self) -> Iterator[Step]:
        """What is done to the machine, in order."""

        def step(action: Action, value: str | None) -> Step:
            return Step(self.device.name, action, value, str(self.device.sys_path), self.device.subsystem)

        if self.vfs:
            yield step(Action.SET_VFS, "0")
        if self.driver is not None:
            # The override first: a device between drivers is then not probed by its old one.
            yield step(Action.SET_OVERRIDE, self.driver)
        if self.device.driver is not None:
            yield step(Action.UNBIND, self.device.driver)
        if self.driver is not None:
            yield step(Action.BIND, self.driver)


@dataclass(frozen=True, slots=True)
class ClaimPlan:
    """What it takes to make whole IOMMU groups free for iommufd. Made by `plan_claim`; changes nothing itself.

    Attributes:
        devices: The devices that were asked for.
        groups: Their IOMMU groups.
        moves: Each device that changes its driver, in the order in which it is done.
        stays: Members that are left as they are, being safe beside a bound device.
        refusals: What speaks against it and was not named to ``force``.
        force: The kinds of refusals that the plan goes ahead in spite of.
        driver: The vfio driver that the devices asked for were to have; None: each the one that is chosen by itself.
        steps: Every single change to the machine that `apply` makes, in order.
        undo: The steps that undo them, in order.
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

    @property
    def companions(self) -> tuple[HostDevice, ...]:
        """What nobody named, and the claim concerns all the same: members of the groups, and virtual functions."""
        members = [device for group in self.groups for device in group.devices]
        functions = [function for move in self.moves for function in move.vfs]
        return tuple(device for device in dict.fromkeys([*members, *functions]) if device not in self.devices)

    @property
    def undo_commands(self) -> tuple[str, ...]:
        """The lines of a shell, to be run as root, that undo the claim by hand."""
        return tuple(step.command for step in self.undo)

    def apply(self, *, keep: bool = False, report: Callable[[Step], None] | None = None) -> Claim:
        """Carry the plan out, all of it or nothing.

        SIGINT and SIGTERM, where this is called from the main thread, undo what has been done and take effect then.

        Args:
            keep: The claim outlives this process, and its ``with`` block, until `pyiommufd.host.claims.claim.release`
                ends it.
            report: Called with each step before it is taken, and with those of a roll-back. What it raises ends the
                claim like a step that fails; in a roll-back it is logged, and no more is told.

        Returns:
            The claim, a context manager that gives everything back.

        Raises:
            ClaimRefusedError: The host uses one of the devices, or another claim has it.
            ClaimError: A step failed, or the caller is not root; what had been done is undone.
            DeviceNotFoundError: A device has gone since the plan was made.
        """
        from .claim import carry_out

        return carry_out(self, keep=keep, report=report)

    @property
    def outline(self) -> tuple[str, ...]:
        """The groups and what becomes of each member, a line each."""
        moves = {move.device: move for move in self.moves}
        lines = []
        for group in self.groups:
            lines.append(f"group {group.id}:")
            for device in group.devices:
                move = moves.get(device)
                text = str(move or f"{device.name}: stays on {device.driver or 'no driver'}")
                lines.append(f"  {text}{'' if device in self.devices else '  (companion)'}")
                for function in move.vfs if move else ():
                    text = f"{function.name}: {function.driver or 'no driver'} -> gone, with its physical function"
                    lines.append(f"    {text}  (companion)")
        return tuple(lines)

    def __str__(self) -> str:
        return "\n".join([*self.outline, *(f"refused: {refusal}" for refusal in self.refusals)])


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
            underscores; also for one that is on another vfio driver. What comes along unasked has the driver that is
            chosen by itself. None: that is chosen for all of them (`pyiommufd.host.drivers.vfio_driver_for`).
        force: The kinds of refusals to go ahead in spite of (`pyiommufd.errors.Refusal.kind`), such as
            ``mounted``. Each has to be named.

    Raises:
        ClaimError: A device has no IOMMU group, or no vfio driver takes it; or the driver that was named is not to be
            had here, or no vfio driver.
        DeviceNotFoundError: There is no such device.
        TypeError: The name of the driver is not a string.
        ValueError: No device was named, or a kind that cannot be forced.
    """
    if isinstance(devices, HostDevice | str | Path):
        devices = [devices]
    kinds = uses.forced(force)
    try:
        wanted = tuple(dict.fromkeys(as_device(device) for device in list(devices)))
    except NotImplementedError:  # what a memoryview of several dimensions says to being gone through
        raise TypeError("devices are HostDevice objects, names or paths") from None
    if not wanted:
        raise ValueError("no device to claim was named")
    groups: dict[int, Group] = {}
    for device in wanted:
        group = device.group
        if group is None:
            raise ClaimError(
                f"{device.name} has no IOMMU group: the IOMMU is off or does not cover it "
                "(firmware: VT-d or AMD-Vi on; kernel command line: intel_iommu=on)"
            )
        groups[group.id] = group
    moves: list[Move] = []
    stays = []
    for device in (device for group in groups.values() for device in group.devices):
        named = drivers.vfio_driver_for(device, driver) if driver is not None and device in wanted else None
        if stays_put(device, device in wanted) and named in (None, device.driver):
            stays.append(device)
            continue
        if device in wanted and device.is_bridge:
            raise ClaimError(f"{device.name} is a bridge: vfio-pci takes none; name a device behind it")
        if mediated := _mediated(device):
            raise ClaimError(
                f"{device.name} is what the mediated devices {', '.join(mediated)} are made of: they would be "
                "destroyed, and could not be given back; remove them first"
            )
        target = None if device.is_bridge else named or drivers.vfio_driver_for(device)
        moves.append(Move(device, target, vfs_of(device).devices))
    functions = {function: move.device for move in moves for function in move.vfs}
    for device in wanted:
        if device in functions:
            raise ClaimError(
                f"{device.name} is a virtual function of {functions[device].name}, which would be claimed as well, and "
                "have none then; claim one of them"
            )
    # A virtual function that is a member itself goes with its physical one. Endpoints before bridges, so that giving
    # back, the other way round, has the bridges at work first.
    moves = [move for move in moves if move.device not in functions]
    moves.sort(key=lambda move: move.device.is_bridge)
    return ClaimPlan(
        devices=wanted,
        groups=tuple(groups.values()),
        moves=tuple(moves),
        stays=tuple(stays),
        refusals=tuple(_refusals(groups.values(), moves, kinds)),
        force=kinds,
        driver=driver,
        steps=tuple(_steps(moves)),
        undo=tuple(_undo(moves)),
    )


def _mediated(device: HostDevice) -> list[str]:
    """The names of the mediated devices that a device's driver has made of it."""
    try:
        folders = sorted(device.sys_path.iterdir())
    except OSError:
        return []
    return [folder.name for folder in folders if sysfs.link_name(folder / "subsystem") == "mdev"]


def _refusals(groups: Iterable[Group], moves: list[Move], force: frozenset[str]) -> Iterator[Refusal]:
    functions = [function for move in moves for function in move.vfs]
    # Two records of one device could not both be restored: nothing forces this.
    yield from claimed(names_of(groups, moves))
    for device in (move.device for move in moves):
        yield from (refusal for refusal in uses.refusals(device) if refusal.kind not in force)
    if "held" not in force:
        yield from held([*(move.device for move in moves), *functions])


def names_of(groups: Iterable[Group], moves: Iterable[Move]) -> set[str]:
    """The names of all devices that a claim of these groups is about."""
    members = {device.name for group in groups for device in group.devices}
    return members | {function.name for move in moves for function in move.vfs}


def is_stuck(device: HostDevice) -> bool:
    """Whether the kernel is at the device, on the orders of a claim, as far as this user may know."""
    return device.name in _stuck()


def _stuck() -> set[str]:
    """The names of the devices that the kernel is at, on the orders of a claim, as far as this user may know."""
    try:
        return {name for entry in journal.entries(journal.RUN) for name in entry.stuck}
    except journal.NoAccessError:
        return set()


def claimed(names: Collection[str], run: Path | None = None) -> Iterator[Refusal]:
    """The devices that a claim has already, as far as this user may know."""
    try:
        entries = journal.entries(journal.RUN if run is None else run)
    except journal.NoAccessError:
        return
    for entry in entries:
        for name in sorted(entry.names & set(names)):
            yield Refusal(name, "claimed", f"it is claimed already, by {entry.who}")


def held(devices: Collection[HostDevice]) -> Iterator[Refusal]:
    """The devices that a process has open, or whose group's node it has."""
    # One look at all processes is enough, mostly: it is what takes time.
    for device in devices if holders(*devices) else ():
        yield from (Refusal(device.name, "held", str(holder)) for holder in holders(device))


def _steps(moves: list[Move]) -> Iterator[Step]:
    seen = set()
    for move in moves:
        device, driver = move.device, move.driver
        if driver is None or (device.subsystem, driver) in seen:
            continue
        seen.add((device.subsystem, driver))
        if not drivers.is_loaded(device.subsystem, driver):
            yield Step(device.name, Action.LOAD_DRIVER, driver, str(device.sys_path), device.subsystem)
    for move in moves:
        yield from move.steps()


def _undo(moves: list[Move]) -> Iterator[Step]:
    stuck = _stuck()
    for move in reversed(moves):
        if not stuck.isdisjoint(device.name for device in (move.device, *move.vfs)):
            continue  # a look would wait with what waits there; the plan is refused, as somebody has claimed it
        before = look(move.device.sys_path)
        if before is None:
            continue
        override = before.driver_override if move.driver is None else move.driver
        count = None if before.numvfs is None else 0
        yield from steps_back(
            before, replace(before, driver=move.driver, driver_override=override, numvfs=count, vfs=[])
        )


def stays_put(device: HostDevice, wanted: bool) -> bool:
    """Whether a claim leaves this member of a group as it is."""
    if device.on_vfio:
        return True
    if device.is_bridge:
        return is_safe(device) and not wanted
    # pci-stub is where somebody has put it on purpose; a driverless device goes along, since a hot reset
    # wants every device of its set on a vfio driver.
    return device.driver == "pci-stub" and not wanted
