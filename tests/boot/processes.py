"""Processes of this machine, as /proc shows them: those that a launcher has started, and whether they have ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.patience import until


def read_proc(path: str) -> str:
    """A file of /proc; nothing where the process has ended meanwhile."""
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(pid: int) -> Iterator[int]:
    """The children of a process, and theirs."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        if (stat := read_proc(str(path))) and int(stat.rpartition(")")[2].split()[1]) == pid:
            child = int(path.parent.name)
            yield child
            yield from descendants(child)


def qemu_of(pid: int) -> int:
    """The QEMU that a launcher has started, or is about to."""

    def find() -> int | None:
        return next((child for child in descendants(pid) if "qemu" in read_proc(f"/proc/{child}/comm")), None)

    return until(find, "the launcher starts QEMU")


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    return not (stat := read_proc(f"/proc/{pid}/stat")) or stat.rpartition(")")[2].split()[0] == "Z"


def wait_gone(*pids: int) -> None:
    """Wait for the end of processes that are not this one's own."""
    until(lambda: all(map(gone, pids)), f"the processes {pids} end")
