"""What belongs to a kept claim besides drivers: its file under ``/etc``, and nodes that a user was given.

One JSON file a claim under ``/run/pyiommufd/kept``, beside the journal, which knows the drivers. It is there from
before the claim's first step to after the last of its release, and says which of the two died when its process is gone.
Everything here is called with the lock of `locked` held: what is then found half done has nobody any more who does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from ...errors import ClaimError
from .. import durable
from ..claims import journal, steps


class Stage(StrEnum):
    """How far a kept claim has come."""

    MAKING = "making"
    """It is being made; what there is of it is undone when its process is gone."""
    KEPT = "kept"
    """It is whole."""
    RELEASING = "releasing"
    """It is being released; the rest of it is, too, when the process is gone."""


@dataclass(slots=True)
class Node:
    """A device node that a user was given.

    Attributes:
        path: The node.
        device: The ``/sys`` folder of its device, as the node may be another's later; None for ``/dev/iommu``.
        before: What the user had been given by name before: permissions, or None.
    """

    path: str
    device: str | None
    before: int | None


@dataclass(slots=True)
class KeptRecord:
    """What belongs to one kept claim.

    Attributes:
        id: Its own name, and that of its file.
        stage: How far it has come.
        devices: The names of the devices that the claim takes.
        earlier: The ids of the journal's claims when this one was begun: none of them is this one's.
        pid: The process that made it.
        start_time: When that has started, in clock ticks since boot.
        boot: The boot that it is of.
        entry: The id of the journal's claim, once there is one.
        file: The file of the persistent claim, or None.
        owns_file: Whether the file goes when the claim is not made after all; one that is applied at boot stays.
        user: The name of the user who is given the nodes, or None.
        uid: The user's number, or None.
        nodes: What the user was given.
    """

    id: str
    stage: Stage
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
    nodes: list[Node] = field(default_factory=list)

    def write(self) -> None:
        """Put it on record."""
        text = json.dumps(asdict(self), indent=1)
        steps.cross(f"record the kept claim as {self.stage}", lambda: durable.write(_path(self.id), text, 0o600))

    def remove(self) -> None:
        """Take it off the record."""
        steps.cross("remove the record of the kept claim", lambda: durable.remove(_path(self.id)))

    def find_entry(self) -> journal.Entry | None:
        """The journal's claim that it belongs to, or None where there is none, or none any more."""
        for entry in journal.entries(journal.RUN):
            if self.entry is not None:
                if entry.id == self.entry:
                    return entry
            elif (
                entry.state is journal.State.KEPT
                and entry.id not in self.earlier
                and (entry.pid, entry.start_time) == (self.pid, self.start_time)
                and not entry.names.isdisjoint(self.devices)
            ):
                return entry
        return None


def new_record(devices: list[str]) -> KeptRecord:
    """The record of a claim that this process is about to make; not yet written."""
    pid = os.getpid()
    return KeptRecord(
        id=uuid.uuid4().hex,
        stage=Stage.MAKING,
        devices=devices,
        earlier=[entry.id for entry in journal.entries(journal.RUN)],
        pid=pid,
        start_time=journal.start_time(pid) or 0,
        boot=journal.boot_id(),
    )


def records() -> list[KeptRecord]:
    """Everything on record; not what an earlier boot has left, which has ended with it.

    Raises:
        ClaimError: A file there is none of ours.
    """
    found = []
    for path in sorted(_folder().glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            data["stage"] = Stage(data["stage"])
            data["nodes"] = [Node(**node) for node in data["nodes"]]
            record = KeptRecord(**data)
        except (ValueError, TypeError, KeyError) as error:
            raise ClaimError(f"{path} is no record of a kept claim ({error}); look at it and remove it") from error
        if record.boot == journal.boot_id():
            found.append(record)
    return found


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Keep others waiting who make, release or recover kept claims. The journal's own lock may be taken inside.

    Raises:
        ClaimError: The folder cannot be used, mostly for want of root; or another holds the lock for too long.
    """
    # Of the kind of the journal's, which is taken in turn for each part of what is done here.
    with contextlib.suppress(OSError):
        journal.RUN.mkdir(mode=0o700, parents=True, exist_ok=True)
    with journal.locked(_folder()):
        yield


def _folder() -> Path:
    return journal.RUN / "kept"


def _path(name: str) -> Path:
    return _folder() / f"{name}.json"
