"""Which of the machine's namespaces this process sees: in a container it sees less than what its host does.

A sysfs of the host's shows its devices all the same, and lets them be taken away.
"""

from __future__ import annotations

import os

from . import sysfs

_NAMES = {"pid": "PID", "mnt": "mount", "net": "network"}

# The inode numbers of the initial namespaces: Linux 7.3, include/uapi/linux/nsfs.h, enum init_ns_ino. That of the PID
# namespace is as old as namespaces are; the others have had numbers of no meaning before 6.18.
_INITIAL = {"pid": 0xEFFF_FFFC, "mnt": 0xEFFF_FFF8, "net": 0xEFFF_FFF9}


def sees_all_processes() -> bool:
    """Whether /proc is that of the initial PID namespace: it is where every process of the machine has a number."""
    # Not this process's own namespace: it may be another one, with the /proc of the initial one.
    of_init = namespace("1", "pid")
    return (namespace("self", "pid") if of_init is None else of_init) == _initial("pid")


def foreign_namespaces() -> tuple[str, ...]:
    """Those of ``PID``, ``mount`` and ``network`` where this process is in another namespace than the machine's init.

    In a PID namespace of one's own init is not to be seen; older kernels than 6.18 do not tell then which of the other
    namespaces are the initial ones: they are named, too.
    """
    whole = sees_all_processes()
    found = []
    for kind, name in _NAMES.items():
        ours, init = namespace("self", kind), namespace("1", kind) if whole else None
        if ours is None or ours == _initial(kind):
            continue
        if kind == "pid" or not whole or init not in (None, ours):
            found.append(name)
    return tuple(found)


def outlook() -> str:
    """What this process does not see of the machine, being in another namespace than init, in a sentence; or empty."""
    foreign = foreign_namespaces()
    if not foreign:
        return ""
    names = " and ".join(filter(None, [", ".join(foreign[:-1]), foreign[-1]]))
    text = f"this process is in another {names} namespace than the machine's init, as in a container"
    if "mount" in foreign:
        text += "; claims that were made elsewhere are not on record here, nor are those of here there"
    return f"{text}: what cannot be seen of the host from here is refused as unseen"


def namespace(process: str, kind: str) -> str | None:
    """A namespace of a process, as namespaces(7) writes it: ``mnt:[4026531832]``; None where that cannot be seen.

    Args:
        process: Its number, or ``self``.
        kind: ``pid``, ``mnt`` or ``net``.
    """
    try:
        return os.readlink(f"{sysfs.PROC}/{process}/ns/{kind}")  # noqa: PTH115 (hot)
    except OSError:
        return None


def _initial(kind: str) -> str:
    return f"{kind}:[{_INITIAL[kind]}]"
