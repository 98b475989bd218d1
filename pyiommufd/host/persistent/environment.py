"""Whether only root can change the Python environment that is to run as root at each boot.

Looked at are the interpreter, the folders that it loads modules from, as an interpreter answers that is started as at
boot, with the ``.pth`` files in them, the packages that the command imports with each of their files, and all folders
above these up to the root, those of symbolic links too. Where only root can add to a folder, its other files are not
looked at one by one: whoever was given one was given it by root. Nor are the system's libraries.

Of an access control list the mode says enough: what such a list lets anybody but the owner write, its mask has, and
that is what stands where the mode has the group's bits (acl(5)).
"""

from __future__ import annotations

import functools
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pyiommufd.errors import ClaimError, Fix

OPTIONS = ("-I",)
"""What the interpreter is started with: the working folder, a user's modules and the environment's variables are not
where its modules come from."""

PACKAGES = ("pyiommufd", "click", "pyudev")
"""What the command imports that does not come with Python."""

_SECONDS = 60.0
_LINKS = 40  # as the kernel does, path_resolution(7)
_SHOWN = 3

# What it has imported by itself, .pth files and sitecustomize have had it import.
_PROGRAM = """
import sys
before = list(sys.modules.values())
import importlib.util, json
files = [sys.prefix, sys.prefix + "/pyvenv.cfg", sys.base_prefix, *sys.path]
files += filter(None, (getattr(module, "__file__", None) for module in before))
packages = {name: [] for name in sys.argv[1:]}
for name, found in packages.items():
    if spec := importlib.util.find_spec(name):
        found += filter(None, (*(spec.submodule_search_locations or ()), spec.origin))
print(json.dumps([files, packages]))
"""


def interpreter() -> str:
    """The interpreter of this environment."""
    return sys.executable or "/usr/bin/python3"


def check() -> None:
    """Make sure that only root can change this environment.

    Raises:
        ClaimError: Others can; or the command cannot be run from it at boot.
    """
    found = writable_by_others(places())
    if not found:
        return
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    install = (
        "install pyiommufd where only root can write, such as in a venv that root makes below /opt, or for the "
        "distribution's Python, and"
    )
    raise ClaimError(
        f"users other than root can change what root runs at each boot: {', '.join(found[:_SHOWN])}{more}",
        Fix(f"{install} call apply(persist=True) there", f"{install} run pyiommufd claim --persist from there"),
    )


def places() -> Iterator[Path]:
    """The files and folders of this environment that are looked at; those above them come with them.

    Raises:
        ClaimError: The interpreter does not start without what is in this process's environment, or lacks a package.
    """
    files, packages = _asked()
    if missing := [name for name, found in packages.items() if not found]:
        raise ClaimError(
            f"{interpreter()} has no {', '.join(missing)} without PYTHONPATH, the user's own modules and the working "
            "folder, which a boot does not have: install pyiommufd into its environment"
        )
    yield Path(interpreter())
    for file in map(Path, files):
        yield file
        yield from file.glob("*.pth")
    for place in (Path(place) for found in packages.values() for place in found):
        yield place
        yield from place.rglob("*")


def _asked() -> tuple[list[str], dict[str, list[str]]]:
    """What the interpreter loads modules from, and where it has the packages."""
    try:
        done = subprocess.run(
            [interpreter(), *OPTIONS, "-c", _PROGRAM, *PACKAGES],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            cwd="/",
        )
        if done.returncode == 0:
            files, packages = json.loads(done.stdout)
            return files, packages
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        said = str(error)
    raise ClaimError(f"{interpreter()} cannot be run as at boot: {said}")


def writable_by_others(places: Iterable[Path]) -> list[str]:
    """What users other than root can write of these, or of the folders above them, and why: a phrase each.

    Where that is a folder, what is below is not listed besides.

    Args:
        places: Absolute paths of files and folders. What is not there can be made by whoever can write the folder.
    """
    look = functools.cache(Path.lstat)
    return list(dict.fromkeys(fault for place in dict.fromkeys(places) if (fault := _fault(place, look))))


def _fault(place: Path, look: Callable[[Path], os.stat_result]) -> str:
    """What others can write on the way to a place, and why; empty: nothing."""
    here, rest, links, is_sticky = Path("/"), _names(place), 0, False
    while True:
        try:
            status = look(here)
        except (FileNotFoundError, NotADirectoryError):
            return f"{here} (is not there, and anybody can make it)" if is_sticky else ""
        except OSError as error:
            return f"{here} (cannot be looked at: {error.strerror})"
        is_link = stat.S_ISLNK(status.st_mode)
        # In a sticky folder, such as /tmp, nobody can remove or replace what is another's.
        is_sticky = bool(rest) and stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
        if status.st_uid != 0:
            return f"{here} (belongs to uid {status.st_uid})"
        if status.st_mode & 0o022 and not is_link and not is_sticky:
            who = "anybody" if status.st_mode & 0o002 else f"gid {status.st_gid}"
            return f"{here} ({who} can write it)"
        if is_link:
            links += 1
            target = here.readlink()
            here, rest = Path("/") if target.is_absolute() else here.parent, [*_names(target), *rest]
        if not rest or links > _LINKS:
            return ""
        name = rest.pop(0)
        here = here.parent if name == ".." else here / name


def _names(path: Path) -> list[str]:
    return [part for part in path.parts if part.strip("/")]
