"""Migration of version 1 records, which kept the non-device part of a kept claim in separate files under ``kept``.

Each file is merged into the record of its claim by the next process that takes the lock. They are no longer written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pyiommufd.host.claims.record import ClaimRecord, ClaimState, GivenNode, boot_id
from pyiommufd.host.decoding import decode
from pyiommufd.host.persistent import boot_unit

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Version1File:
    """One version 1 file. ``entry``: id of the claim, once made; ``earlier``: ids of claims that existed before it."""

    id: str
    stage: str
    devices: list[str]
    earlier: list[str]
    pid: int
    start_time: int
    boot: str
    entry: str | None = None
    file: str | None = None
    owns_file: bool = False
    user: str | None = None
    uid: int | None = None
    nodes: list[GivenNode] = field(default_factory=list)

    def find(self, records: list[ClaimRecord]) -> ClaimRecord | None:
        """The claim that it belongs to; None where it was not made, or has been given back."""
        for record in records:
            if self.entry is not None:
                if record.id == self.entry:
                    return record
            elif (
                record.state is ClaimState.KEPT
                and record.id not in self.earlier
                and (record.pid, record.start_time) == (self.pid, self.start_time)
                and not record.names.isdisjoint(self.devices)
            ):
                return record
        return None


def migrate(folder: Path, read: Callable[[], list[ClaimRecord]], write: Callable[[ClaimRecord], None]) -> None:
    """Merge all version 1 files into their records; files that cannot be parsed are left in place.

    Args:
        folder: Where they are.
        read: Reads what is on record.
        write: Writes one record.
    """
    if not any(folder.glob("*.json")):
        return
    with open(folder / "lock", "ab") as lock, contextlib.suppress(BlockingIOError):
        # A running process of that version holds this lock while it works on one of these files.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in sorted(folder.glob("*.json")):
            try:
                kept: _Version1File = decode(_Version1File, json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, RecursionError) as error:
                _log.warning("%s is not a record of a kept claim (%s); look at it and remove it", path, error)
                continue
            if kept.boot == boot_id():
                write(_migrated(kept, read()))
            path.unlink(missing_ok=True)


def _migrated(kept: _Version1File, records: list[ClaimRecord]) -> ClaimRecord:
    record = kept.find(records)
    if record is None:
        # Its devices were released, or never taken; the rest of the claim has to be undone.
        record = ClaimRecord.begin([], kept.devices)
        record.id = kept.id
    if kept.stage != "kept":
        record.state = ClaimState.IN_PROGRESS
    record.user, record.uid, record.nodes, record.file = kept.user, kept.uid, kept.nodes, kept.file
    record.removes_file = kept.stage == "releasing" or (kept.stage == "making" and kept.owns_file)
    record.unit = None if kept.file is None else str(boot_unit.file())
    return record
