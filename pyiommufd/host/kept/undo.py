"""What undoes a kept claim, part by part: the same parts are shown before and carried out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ClaimError, CloseError, DeviceNotFoundError, IOMMUFDError
from .. import access
from ..claims import journal, steps
from ..claims.claim import release as release_claims
from ..claims.claim import release_steps as release_claims_steps
from ..devices import HostDevice, as_device, from_sys_path
from ..persistent import boot_unit, claim_file
from .parts import AnyStep, FileAction, FileStep, Report
from .record import KeptRecord, Node, Stage, records


@dataclass(frozen=True, slots=True)
class Part:
    """A part of what undoes a kept claim.

    Attributes:
        steps: Returns its steps, as they would be now.
        do: Carries them out, each after it has been reported, and returns the names of devices given back.
    """

    steps: Callable[[], Sequence[AnyStep]]
    do: Callable[[Report], list[str]]


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept claim as a whole.

    Attributes:
        entry: What the journal has of it, which knows the drivers.
        record: What belongs to it besides.
        file: What is to be done at boot.
    """

    entry: journal.Entry | None
    record: KeptRecord | None
    file: Path | None

    @classmethod
    def of(cls, record: KeptRecord) -> Kept:
        """The claim that a record is of."""
        # What is being applied at boot stays on record when it fails.
        goes = record.file is not None and (record.owns_file or record.stage is not Stage.MAKING)
        return cls(record.find_entry(), record, Path(str(record.file)) if goes else None)

    def has(self, name: str, device: HostDevice | None) -> bool:
        """Whether it has a device; one that is not here by the name that it had."""
        names = set() if self.record is None else set(self.record.devices)
        if self.entry is not None:
            names |= self.entry.names
        if name in names:
            return True
        if self.file is None or self.record is not None:
            return False
        try:
            claim = claim_file.read(self.file)
        except ClaimError:
            return name == self.file.stem
        if device is not None:
            return claim.may_take(device)
        return any(name == identity.name for identity in (*claim.wanted, *claim.companions))

    def parts(self, undone: Iterable[Kept]) -> Iterator[Part]:
        """What undoes it, in order, once others have been undone."""
        # First what would have it made again, whatever comes then.
        if self.file is not None and self.file.exists():
            file = self.file
            yield _file_part(FileStep(str(file), FileAction.REMOVE), lambda: claim_file.forget(file))
        if self.record is not None and self.record.uid is not None:
            gone = {self.record.id, *(other.record.id for other in undone if other.record is not None)}
            for node in self.record.nodes:
                yield from _revoke(node, self.record, self.record.uid, gone)
        if self.entry is not None and self.entry.names:
            name = min(self.entry.names)
            yield Part(lambda: release_claims_steps([name]), lambda report: release_claims([name], report=report))


def _file_part(step: FileStep, action: Callable[[], None]) -> Part:
    def do(report: Report) -> list[str]:
        report(step)
        action()
        return []

    return Part(lambda: [step], do)


def _revoke(node: Node, record: KeptRecord, uid: int, gone: set[str]) -> Iterator[Part]:
    path, place = Path(node.path), node.path
    if node.device is not None:
        try:
            device = from_sys_path(Path(node.device))
        except DeviceNotFoundError:
            return
        # A node goes with its driver, and another device's may have its name by now.
        if device.vfio_cdev != node.path:
            return
        place = device.name
    others = [other for other in records() if other.id not in gone and other.uid == uid]
    if not path.exists() or any(one.path == node.path for other in others for one in other.nodes):
        return
    with contextlib.suppress(OSError):
        if access.granted(path, uid) == node.before:
            return  # it had not come to it, or has been done
    step = FileStep(place, FileAction.REVOKE, record.user)
    yield _file_part(step, lambda: steps.cross(str(step), lambda: access.grant(path, uid, node.before)))


def end_of_unit(removed: Iterable[Path]) -> Iterator[Part]:
    """What follows when these files have gone: with the last persistent claim goes the unit."""
    left = set(claim_file.files()) - set(removed)
    if not left and boot_unit.file().exists() and boot_unit.is_ours():
        yield _file_part(FileStep(str(boot_unit.file()), FileAction.DISABLE), boot_unit.remove)


def undo(kept: Kept, undone: Iterable[Kept], report: Report) -> list[str]:
    """Undo a kept claim. What cannot be undone stays on record.

    Returns:
        The names of the devices that were given back.

    Raises:
        CloseError: Something could not be undone; the rest is.
    """
    errors: list[BaseException] = []
    names: list[str] = []
    if kept.record is not None:
        kept.record.stage = Stage.RELEASING
        if kept.file is None:
            kept.record.file = None
        try:
            kept.record.write()
        except OSError as error:
            errors.append(error)
    for part in kept.parts(undone):
        try:
            names += part.do(report)
        except CloseError as error:
            errors += error.errors
        except (OSError, IOMMUFDError) as error:
            errors.append(error)
    if errors:
        raise CloseError("not everything could be given back to the host:", tuple(errors))
    if kept.record is not None:
        kept.record.remove()
    return names


def left_behind(*, recovered: bool = False) -> list[Kept]:
    """What processes have left that died while they made or released a kept claim.

    And what belongs to a claim that somebody else has released, who knew of the drivers alone.

    Args:
        recovered: As it will be once `pyiommufd.host.claims.claim.recover` has given back the drivers.
    """
    found = []
    for record in records():
        kept = Kept.of(record)
        if recovered and kept.entry is not None and kept.entry.state is not journal.State.KEPT:
            kept = Kept(None, record, kept.file)
        if record.stage is not Stage.KEPT:
            found.append(kept)
        elif kept.entry is None:
            found.append(Kept(None, record, None))
    return found


def chosen(devices: Iterable[HostDevice | str] | None) -> list[Kept]:
    """The kept and persistent claims that have these devices, or all of them, the latest first.

    Raises:
        ClaimError: None has one of the devices.
    """
    everything = _everything()
    if devices is None:
        return everything
    found: list[Kept] = []
    for given in devices:
        try:
            device = as_device(given)
            name = device.name
        except DeviceNotFoundError:
            device, name = None, str(given)
        having = [kept for kept in everything if kept.has(name, device)]
        if not having:
            if device is None:
                as_device(given)  # says what is wrong with the name
            who = next((f": it is claimed by {e.who}" for e in journal.entries(journal.RUN) if name in e.names), "")
            raise ClaimError(f"no kept claim has {name}{who}")
        found += [kept for kept in having if kept not in found]
    return found


def _everything() -> list[Kept]:
    recorded = [Kept.of(record) for record in records()]
    known = {kept.entry.id for kept in recorded if kept.entry is not None}
    entries = [
        Kept(entry, None, None)
        for entry in journal.entries(journal.RUN)
        if entry.id not in known
        and (
            entry.state is journal.State.KEPT
            # Whose release failed halfway.
            or (entry.state is journal.State.IN_PROGRESS and (not entry.alive or entry.pid == os.getpid()))
        )
    ]
    files = {kept.file for kept in recorded}
    alone = [Kept(None, None, file) for file in claim_file.files() if file not in files]
    made = [*recorded, *entries]
    made.sort(key=lambda kept: kept.entry.created if kept.entry is not None else 0, reverse=True)
    return [*made, *alone]
