"""Which of the machine's namespaces this process is in: in a container it sees less of what the host does.

Where the container has the host's /sys it can list the host's devices all the same, and take them away.
"""

from __future__ import annotations

import os

from pyiommufd.host import sysfs

_NAMES = {"user": "user", "pid": "PID", "mnt": "mount", "net": "network"}

# The inode numbers of the initial namespaces: Linux 7.3, include/uapi/linux/nsfs.h, enum init_ns_ino. Those of the
# user and the PID namespace are as old as these are; the others have had numbers of no meaning before 6.18.
_INITIAL = {"user": 0xEFFF_FFFD, "pid": 0xEFFF_FFFC, "mnt": 0xEFFF_FFF8, "net": 0xEFFF_FFF9}


def sees_all_processes() -> bool:
    """Whether /proc is that of the initial PID namespace: it is where every process of the machine has a number."""
    # Not this process's own namespace: it may be another one, with the /proc of the initial one.
    of_init = namespace("1", "pid")
    return (namespace("self", "pid") if of_init is None else of_init) == _initial("pid")


def has_own_users() -> bool:
    """Whether this process is in a user namespace of its own: its capabilities are not good for the machine then."""
    return namespace("self", "user") not in (None, _initial("user"))


def foreign_namespaces() -> tuple[str, ...]:
    """Where this process is in another namespace than the machine's init: ``user``, ``PID``, ``mount``, ``network``.

    In a separate PID namespace init is not visible. Kernels before 6.18 then do not tell whether a mount or network
    namespace is the initial one; it is listed, since it may not be. For a user who may not read init's namespaces,
    neither of these two is listed there.
    """
    whole = sees_all_processes()
    found = []
    for kind, name in _NAMES.items():
        ours, init = namespace("self", kind), namespace("1", kind) if whole else None
        if ours is None or ours == _initial(kind):
            continue
        if kind in ("user", "pid") or not whole or init not in (None, ours):
            found.append(name)
    return tuple(found)


def visibility_note() -> str:
    """A sentence on what this process cannot see, being in another namespace than the machine's init; or empty."""
    foreign = foreign_namespaces()
    if not foreign:
        return ""
    names = " and ".join(filter(None, [", ".join(foreign[:-1]), foreign[-1]]))
    text = f"this process is in another {names} namespace than the machine's init, as in a container"
    records = ", and claims that were made elsewhere may not be on record here" if "mount" in foreign else ""
    return f"{text}: not all that the host does may be seen from here{records}"


def namespace(process: str, kind: str) -> str | None:
    """A namespace of a process, as namespaces(7) writes it: ``mnt:[4026531832]``; None where that cannot be seen.

    Args:
        process: Its number, or ``self``.
        kind: ``user``, ``pid``, ``mnt`` or ``net``.
    """
    try:
        return os.readlink(f"{sysfs.PROC}/{process}/ns/{kind}")  # noqa: PTH115 (hot)
    except OSError:
        return None


def _initial(kind: str) -> str:
    return f"{kind}:[{_INITIAL[kind]}]"
