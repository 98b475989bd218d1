"""Interfaces that the kernel sends its messages by, which no process knows of: those of netconsole."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .. import sysfs
from .processes import console_names


@dataclass(frozen=True, slots=True)
class NetworkConsoles:
    """What netconsole sends by.

    Attributes:
        interfaces: The names of its interfaces; on the kernel's command line it may have a hardware address in place of
            a name.
        are_complete: Whether these are all: without its folder in configfs it does not tell.
    """

    interfaces: frozenset[str]
    are_complete: bool


def network_consoles() -> NetworkConsoles:
    """Look at netconsole, by its folder in configfs, the kernel's command line, and whether it is one of the consoles.

    Forms: Linux 7.3, Documentation/networking/netconsole.rst.
    """
    folder = sysfs.SYS / "kernel/config/netconsole"
    names = {sysfs.read(path / "dev_name") for path in folder.glob("*") if sysfs.read(path / "enabled") == "1"}
    # Since Linux 6.7 those of the command line have folders as well, and are to be switched off there.
    line = "" if any(folder.glob("cmdline*")) else sysfs.read(sysfs.PROC / "cmdline") or ""
    for target in " ".join(re.findall(r"\bnetconsole=(\S+)", line)).replace(";", " ").split():
        # [+][r][source port]@[source address]/[interface],[port]@address/[hardware address]
        match = re.match(r"[^/]*/([^,/]*),", target)
        names.add((match[1] if match else "") or "eth0")
    there = any(name.startswith("netcon") for name in console_names())
    return NetworkConsoles(frozenset(filter(None, names)), folder.is_dir() or not there)
