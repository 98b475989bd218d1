"""What is on record of a claim: how everything was before, and what else belongs to it."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pyiommufd.host import sysfs
from pyiommufd.host.decoding import decode
from pyiommufd.host.namespaces import namespace

VERSION = 2
"""Of the format. Version 1 had no such key, no `DeviceState.power`, and what belongs to a kept claim besides its
devices in files of its own (`record_migration`)."""


class ClaimState(StrEnum):
    """The state of a claim on record."""

    IN_PROGRESS = "in progress"
    """The claim or its release is being carried out, by a process that has the lock meanwhile."""
    SESSION = "session"
    """The claim is held by the process named, and ends with it."""
    KEPT = "kept"
    """The claim lasts until it is released."""
    NEWER = "newer"
    """A newer version of this package has made it: only the names of its devices are known, as far as they are found.
    Never written."""


@dataclass(slots=True)
class DeviceState:
    """How a device is, or was before a claim touched it.

    Attributes:
        name: Its name.
        subsystem: Its bus.
        sys_path: Its folder.
        driver: The driver that it is on, or None.
        driver_override: The override that is set, or None.
        identity: Vendor and device, such as ``1234:11e8``, or None: another device in its place is left alone.
        numvfs: How many virtual functions it has; None: it can have none.
        autoprobe: Whether new virtual functions go to their drivers by themselves; None as above.
        vfs: Those virtual functions.
        power: Its ``power/control``: ``on``, or ``auto`` where it may sleep; None where it has none.
    """

    name: str
    subsystem: str
    sys_path: str
    driver: str | None
    driver_override: str | None
    identity: str | None = None
    numvfs: int | None = None
    autoprobe: bool | None = None
    vfs: list[DeviceState] = field(default_factory=list)
    power: str | None = None


@dataclass(slots=True)
class GivenNode:
    """A device node that a user was given.

    Attributes:
        path: The node.
        device: The folder of its device, as the node may be another's later; None for ``/dev/iommu``.
        before: What the user had been given by name before: permissions, or None.
    """

    path: str
    device: str | None
    before: int | None


@dataclass(slots=True)
class ClaimRecord:
    """One claim. What has been given back is no longer in it.

    Attributes:
        id: Its name, and that of its file.
        state: What it stands for.
        pid: The owning process; 0: none, since the claim could not be released completely.
        start_time: When that has started, in clock ticks since boot, which tells it from a later one of its pid.
        groups: The IOMMU groups.
        devices: What is to be restored, in the order in which it was touched.
        wanted: The names of the devices that were asked for.
        boot: The boot that it is of.
        created: When it was begun, in nanoseconds since boot.
        doing: The step that was about to be taken when it was written last.
        waiting: By device, the processes that wait in the kernel for a step of it to end: pid and start time.
        pid_namespace: Where `pid` is the process's number; None: not on record.
        since: When it was begun, in seconds since 1970.
        user: The name of the user who is given the nodes, or None.
        uid: The user's number, or None.
        nodes: What the user was given.
        file: The file that has it made at every boot, or None.
        removes_file: Whether the file goes when this is undone. That of a claim that could not be made at boot stays.
        unit: The systemd unit for the files: it goes with the last of them. None: there is none for this claim.
    """

    id: str
    state: ClaimState
    pid: int
    start_time: int
    groups: list[int]
    devices: list[DeviceState] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)
    boot: str = field(default_factory=lambda: boot_id())
    created: int = 0
    doing: str = ""
    waiting: dict[str, list[int]] = field(default_factory=dict)
    pid_namespace: str | None = None
    since: float = 0.0
    user: str | None = None
    uid: int | None = None
    nodes: list[GivenNode] = field(default_factory=list)
    file: str | None = None
    removes_file: bool = False
    unit: str | None = None

    @classmethod
    def begin(cls, groups: Iterable[int] = (), wanted: Iterable[str] = ()) -> Self:
        """The record of a claim that this process is about to make."""
        record = cls(
            id=uuid.uuid4().hex,
            state=ClaimState.IN_PROGRESS,
            pid=0,
            start_time=0,
            groups=list(groups),
            wanted=list(wanted),
            created=time.monotonic_ns(),
            since=time.time(),
        )
        record.take_over()
        return record

    def take_over(self) -> None:
        """Make this process the owner, which is about to make or undo the claim."""
        self.state = ClaimState.IN_PROGRESS
        self.pid, self.pid_namespace = os.getpid(), namespace("self", "pid")
        self.start_time = start_time(self.pid) or 0

    @property
    def names(self) -> set[str]:
        """The names of the devices that it has: those asked for, those that it moved, and their virtual functions."""
        functions = {function.name for state in self.devices for function in state.vfs}
        return {*self.wanted, *(state.name for state in self.devices), *functions}

    @property
    def example(self) -> str:
        """The name of one of its devices, to name it by; ``--all`` where it has none."""
        return next(iter([*self.wanted, *sorted(self.names), "--all"]))

    @property
    def stuck(self) -> set[str]:
        """The names of devices for which an earlier sysfs write still blocks in the kernel."""
        return {name for name, (pid, started) in self.waiting.items() if pid and start_time(pid) == started}

    def text(self) -> str:
        """Its JSON."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1)


def parse(data: Any) -> ClaimRecord:
    """The record of what JSON gave, of this version or an earlier one; of a newer one what can be known of it.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(data, dict):
        raise ValueError("no object")
    version = data.pop("version", 1)
    if not isinstance(version, int):
        raise ValueError(f"version {version!r}")
    if version > VERSION:
        newer = ClaimRecord.begin([], sorted(_names(data)))
        newer.boot, newer.state, newer.since = str(data.get("boot", newer.boot)), ClaimState.NEWER, 0.0
        return newer
    record: ClaimRecord = decode(ClaimRecord, data)
    if not 0 <= record.since < 1 << 40:
        raise ValueError(f"since {record.since}")
    if record.state is ClaimState.NEWER:
        raise ValueError(f"state {record.state!r} of our own version")
    if any(len(process) != 2 for process in record.waiting.values()):
        raise ValueError("waiting: a process is its pid and its start time")
    for state in record.devices:
        for one in (state, *state.vfs):
            if any("/" in part for part in (one.name, one.subsystem, one.driver or "")):
                raise ValueError(f"{one.name!r}: a name with a slash")
    return record


def _names(data: dict[str, Any]) -> set[str]:
    """The names of devices in a record of unknown form, where they are as they are in ours."""
    wanted, devices = data.get("wanted"), data.get("devices")
    found = list(wanted) if isinstance(wanted, list) else []
    for device in devices if isinstance(devices, list) else ():
        if isinstance(device, dict):
            found.append(device.get("name"))
    return {name for name in found if isinstance(name, str)}


def boot_id() -> str:
    """The id of this boot: driver bindings do not survive a reboot, so records of other boots need no restore."""
    return sysfs.read(sysfs.PROC / "sys/kernel/random/boot_id") or ""


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot, or None where none of that pid is running."""
    text = sysfs.read(Path("/proc") / str(pid) / "stat")
    if not text:
        return None
    # proc_pid_stat(5): the command may hold blanks and brackets, and ends at the last bracket; fields 3 and 22.
    fields = text.rpartition(")")[2].split()
    # A zombie (ended, not yet waited for) still has an entry, but no longer runs.
    return None if fields[0] in "ZX" else int(fields[19])
