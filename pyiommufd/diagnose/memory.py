"""Why memory could not be pinned: the limit on locked memory, or memory itself."""

from __future__ import annotations

from pathlib import Path

from pyiommufd.diagnose.fixes import MEMORY_LIMIT
from pyiommufd.errors import Cause
from pyiommufd.host import sysfs
from pyiommufd.host.limits import lockable_memory


def memory_cause() -> Cause:
    """Why memory could not be pinned: the limit, where there is one for this process."""
    limit = lockable_memory()
    if limit is None:
        return Cause("the memory could not be pinned: the machine has too little", "no limit applies", "map less")
    status = sysfs.read(Path("/proc/self/status")) or ""
    pinned = [line.split(None, 1)[1] for line in status.splitlines() if line.startswith("VmPin:")]
    seen = f"locked memory is limited to {limit:#x} bytes; other processes of this user count too"
    return Cause(
        "the memory could not be pinned: it is over the limit on locked memory",
        f"{seen}; this process has pinned {pinned[0]}" if pinned else seen,
        MEMORY_LIMIT,
    )
