"""What is claimed now, or is to be at boot, and what of it is stuck."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.errors import ClaimError, DeviceNotFoundError
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.at_boot import plan_again
from pyiommufd.host.claims.record import ClaimRecord, ClaimState
from pyiommufd.host.claims.release import unmade
from pyiommufd.host.discovery.devices import from_sys_path
from pyiommufd.printable import OneLine, listed

NOT_MADE = "not made"
"""The state of a claim that is on record for every boot, and is not made now."""


@dataclass(frozen=True, slots=True, repr=False)
class ClaimStatus(OneLine):
    """A claim, as it is now.

    Attributes:
        devices: The names of the devices that were asked for, or are left of these.
        others: The names of the other devices that it has taken, or that have gone away with one.
        groups: The numbers of the IOMMU groups.
        state: ``kept``, ``session``, ``in progress``, ``newer`` (of a newer version) or `NOT_MADE`.
        pid: The process whose it is; None where it is not one's, or the process is gone.
        who: Whose it is, in words.
        since: When it was begun, in seconds since 1970; None: not on record.
        file: The file that has it made at every boot, or None.
        user: The user who may open the nodes, or None.
        stuck: What is not as it should be, a sentence each.
    """

    devices: tuple[str, ...]
    others: tuple[str, ...]
    groups: tuple[int, ...]
    state: str
    pid: int | None
    who: str
    since: float | None
    file: str | None
    user: str | None
    stuck: tuple[str, ...]

    def _line(self) -> str:
        stuck = f", {len(self.stuck)} stuck" if self.stuck else ""
        return f"of {listed(self.devices)}: {self.state}, by {self.who}{stuck}"


def list_claims() -> tuple[list[ClaimStatus], list[ClaimError]]:
    """All claims of this machine, the oldest first, and what is wrong with other files among their records.

    Raises:
        ClaimError: Only root may look.
    """
    records, errors = journal.read_all()
    if any((journal.RUN / "kept").glob("*.json")):
        with journal.locked():  # what an earlier version has on record is joined
            records, errors = journal.read_all()
    found = [_status(record) for record in records]
    for record, claim in unmade(records):
        if isinstance(claim, ClaimError):
            errors.append(claim)
            continue
        names = tuple(identity.name for identity in claim.wanted)
        others = tuple(identity.name for identity in claim.companions)
        try:
            plan_again(claim)
            why = "it has not been made since the boot: pyiommufd claim --persistent"
        except (ClaimError, DeviceNotFoundError) as error:
            why = error.for_command()
        found.append(
            ClaimStatus(names, others, (), NOT_MADE, None, "nobody yet", None, record.file, claim.user, (why,))
        )
    return found, errors


def _status(record: ClaimRecord) -> ClaimStatus:
    alive = record.state in (ClaimState.SESSION, ClaimState.IN_PROGRESS) and journal.is_alive(record)
    return ClaimStatus(
        devices=tuple(record.wanted),
        others=tuple(sorted(record.names - set(record.wanted))),
        groups=tuple(record.groups),
        state=str(record.state),
        pid=record.pid if alive else None,
        who=journal.describe_owner(record),
        since=record.since or None,
        file=record.file,
        user=record.user,
        stuck=tuple(_stuck(record, alive)),
    )


def _stuck(record: ClaimRecord, alive: bool) -> Iterator[str]:
    if record.state is ClaimState.NEWER:
        return
    for name in sorted(record.stuck):
        pid, _ = record.waiting[name]
        yield f"{name}: an earlier write to sysfs still blocks in the kernel (process {pid}): something uses the device"
    if record.state in (ClaimState.SESSION, ClaimState.IN_PROGRESS) and not alive:
        why = "its process is gone" if record.pid else "not all of it could be given back"
        yield f"{why}: pyiommufd release {record.example} gives it back"
    if record.state is ClaimState.IN_PROGRESS:
        return
    for state in record.devices:
        try:
            device = from_sys_path(Path(state.sys_path))
        except DeviceNotFoundError:
            yield f"{state.name} is gone"
            continue
        if not device.on_vfio and not device.is_bridge:
            yield f"{state.name} is on {device.driver or 'no driver'} by now"
