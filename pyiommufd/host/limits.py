"""Capabilities, and how much memory may be locked: by this process, and by a user who is given devices."""

from __future__ import annotations

import grp
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.host import sysfs
from pyiommufd.host.users import User
from pyiommufd.printable import printable

CAP_IPC_LOCK = 14
CAP_SYS_RAWIO = 17
CAP_SYS_PTRACE = 19

SECURITY = Path("/etc/security")
_UNLIMITED = frozenset({"unlimited", "infinity", "-1"})


def has_capability(number: int) -> bool:
    """Whether this process has a capability in effect (capabilities(7)); maybe that of a user namespace only.

    Args:
        number: The capability, such as `CAP_IPC_LOCK`.
    """
    status = sysfs.read(sysfs.PROC / "self/status") or ""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> number & 1)


def lockable_memory() -> int | None:
    """How many bytes this user may lock, with all processes together, and so map for DMA; None: any amount."""
    if has_capability(CAP_IPC_LOCK):
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


@dataclass(frozen=True, slots=True)
class LockLimit:
    """How much memory a user may lock.

    Attributes:
        size: The most that the user's processes can set their limit to, in bytes; None: any amount.
        evidence: Where that was seen.
    """

    size: int | None
    evidence: str

    def advice(self, user: User) -> str:
        """What it means for somebody who is given devices, in a sentence or two."""
        if self.size is None:
            return f"{user} may lock any amount of memory ({self.evidence})"
        return (
            f"{user} can map at most {self.size / (1 << 20):g} MiB for DMA, in all processes together "
            f"({self.evidence}); a VM needs all its memory, and some more: echo '{user} - memlock unlimited' > "
            f"{SECURITY}/limits.d/{user}.conf, and log in anew; of a systemd unit: LimitMEMLOCK=infinity"
        )


def lock_limit(user: User) -> LockLimit:
    """The hard limit on locked memory of a user: by pam_limits(8), else as the user's processes have it.

    Where the user has none, it is that of process 1, which most others inherit.
    """
    if user.uid == 0:
        return LockLimit(None, "root")
    return _by_configuration(user) or _by_processes(user) or _of_process(Path("/proc/1"), "the limit of process 1")


def _by_configuration(user: User) -> LockLimit | None:
    """What limits.conf(5) says: of the user, else of one of the user's groups, else of everyone."""
    groups = {entry.gr_name for entry in grp.getgrall() if user.name in entry.gr_mem or entry.gr_gid == user.gid}
    best: tuple[int, LockLimit] | None = None
    for path in (SECURITY / "limits.conf", *sorted((SECURITY / "limits.d").glob("*.conf"))):
        for domain, size in _lines(path):
            if domain == user.name:
                rank = 2
            elif domain.startswith("@") and domain[1:] in groups:
                rank = 1
            elif domain == "*":
                rank = 0
            else:
                continue
            if best is None or rank >= best[0]:
                best = rank, LockLimit(size, f"{path}: {domain}")
    return None if best is None else best[1]


def _lines(path: Path) -> Iterator[tuple[str, int | None]]:
    """The domain and size of each hard limit on locked memory."""
    for line in sysfs.lines(path):
        words = line.partition("#")[0].split()
        if len(words) != 4 or words[1] not in ("hard", "-") or words[2] != "memlock":
            continue
        if words[3] in _UNLIMITED:
            yield words[0], None
        elif words[3].isdecimal():
            yield words[0], int(words[3]) << 10


def _by_processes(user: User) -> LockLimit | None:
    """The lowest that one of the user's processes has."""
    found: list[LockLimit] = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _uid_of(process) == user.uid:
            command = printable(sysfs.read(process / "comm") or "?")
            found.append(_of_process(process, f"the limit of the user's process {process.name} ({command})"))
    return min(found, key=lambda limit: float("inf") if limit.size is None else limit.size, default=None)


def _uid_of(process: Path) -> int | None:
    match = re.search(r"^Uid:\s*(\d+)", sysfs.read(process / "status") or "", re.MULTILINE)
    return None if match is None else int(match[1])


def _of_process(process: Path, evidence: str) -> LockLimit:
    text = sysfs.read(process / "limits") or ""
    match = re.search(r"^Max locked memory\s+\S+\s+(\S+)", text, re.MULTILINE)
    if match is None:
        return LockLimit(8 << 20, "the kernel's default")  # Linux 5.16 and newer
    return LockLimit(None if match[1] == "unlimited" else int(match[1]), evidence)
