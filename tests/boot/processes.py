"""Processes of this machine, as /proc shows them: those that a launcher has started, and whether they have ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

SECONDS = 120
"""How long what is sure to come may take, on a machine that does much else."""


def read_proc(path: str) -> str:
    """A file of /proc; nothing where the process has ended meanwhile."""
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(pid: int) -> Iterator[int]:
    """The children of a process, and theirs."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in map(int, read_proc(f"{task}/children").split()):
            yield child
            yield from descendants(child)


def qemu_of(pid: int) -> int:
    """The QEMU that a launcher has started, or is about to."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for child in descendants(pid):
            if "qemu" in read_proc(f"/proc/{child}/comm"):
                return child
        time.sleep(0.05)
    raise AssertionError("the launcher started no QEMU")


def gone(pid: int) -> bool:
    """Whether a process ends by and by; a zombie has ended."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if not (stat := read_proc(f"/proc/{pid}/stat")) or stat.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False
