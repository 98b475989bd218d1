"""Where the kernel's messages go by UDP: netconsole, whose interface may have no address (Linux, netconsole.rst)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from pyiommufd.host import sysfs
from pyiommufd.host.uses.processes import console_names

_DEFAULT = "eth0"
_FIRST = "cmdline0"


@dataclass(frozen=True, slots=True)
class Netconsole:
    """The interfaces by which netconsole sends the kernel's messages.

    Attributes:
        interfaces: The names of the interfaces; of one that was renamed since the start of the machine possibly the
            earlier one, and a hardware address where it was chosen by that.
        unseen: Why there may be others; empty where all are known.
    """

    interfaces: tuple[str, ...] = ()
    unseen: str = ""


def netconsole() -> Netconsole:
    """Read netconsole's targets from configfs and the kernel command line."""
    # Not before its first target is its console there (Linux 7.3, drivers/net/netconsole.c).
    if not any(name.startswith("netcon") for name in console_names()):
        return Netconsole()
    folder = sysfs.SYS / "kernel/config/netconsole"
    shown = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    enabled = [name for name in shown if sysfs.read(folder / name / "enabled") not in ("0", None)]
    interfaces = [sysfs.read(folder / name / "dev_name") or "" for name in enabled]
    # One of the command line is shown once a folder of its name, cmdline0 …, has been made, and not before.
    given = _given()
    interfaces += [name for number, name in enumerate(given) if f"cmdline{number}" not in shown]
    return Netconsole(tuple(interfaces), _unseen(shown, given, mounted=folder.is_dir()))


def _given() -> list[str]:
    """The interfaces of the targets on the kernel's command line; of several such options the last counts."""
    # Of a module's options the kernel's command line has those that begin with its name.
    prefix = r"netconsole\." if _is_module() else r"(?:netconsole\.)?"
    values = re.findall(rf'(?:^|\s)"?{prefix}netconsole="?([^\s"]*)', sysfs.read(sysfs.PROC / "cmdline") or "")
    targets = values[-1].split(";") if values else []
    # port@address/interface,port@address/hardware-address
    return [target.partition(",")[0].partition("/")[2] or _DEFAULT for target in targets if target]


def _is_module() -> bool:
    return (sysfs.SYS / "module/netconsole/initstate").exists()


def _unseen(shown: list[str], given: list[str], *, mounted: bool) -> str:
    if not mounted and not os.path.ismount(sysfs.SYS / "kernel/config"):
        return "mount configfs on /sys/kernel/config, or look on the host"
    if _is_module() and not given and _FIRST not in shown:
        if mounted:
            return f"one that its module was loaded with shows after mkdir /sys/kernel/config/netconsole/{_FIRST}"
        return "those that its module was loaded with do not show; unload it"
    return ""
