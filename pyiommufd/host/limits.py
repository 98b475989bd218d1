"""What this process may: capabilities, and how much memory it may lock."""

from __future__ import annotations

import re
import resource

from . import sysfs

CAP_IPC_LOCK = 14
CAP_SYS_PTRACE = 19


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
