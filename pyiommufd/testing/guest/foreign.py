"""This Python environment in a guest of another architecture: Python from a root of that one, packages from here.

The packages are seen where they are here, by 9p. What of them is compiled cannot run there: in its place a layer of
files, which an overlay puts on top of the folders, has what the guest's own Python takes. That Python is the root's,
and may be of another version than this one: packages that are all Python work where they support both.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.testing.provision.architecture import Architecture
from pyiommufd.testing.provision.kernels import cache_folder

PACKAGES = Path("/usr/lib/python3/dist-packages")
"""Where Debian's own Python packages are in the root, cffi's compiled part among them."""

COMPILED = Path("/.guest/packages")
"""Where the guest sees the compiled parts of packages, which links in their folders lead to."""

OWN_FOLDERS = tuple(map(Path, ("/usr", "/usr/bin", "/usr/lib", "/usr/sbin", "/bin", "/lib", "/sbin")))
"""What the guest has of its root and never of this machine."""

# Commands that a distribution's package has in /usr/bin, where the guest has the root's.
_COMMANDS = ("pyiommufd", "pytest")

Layer = dict[Path, "bytes | str | None"]
"""By path: the content of a file, the target of a symbolic link, or None for a folder."""


@dataclass(frozen=True, slots=True)
class ForeignSystem:
    """What a guest of another architecture has in place of this machine's programs.

    Attributes:
        folder: Its root, with ``usr`` and ``etc`` (see `foreign_root`).
        extension: This package's extension, compiled for it.
        packages: The compiled parts of other packages (see `foreign_packages`).
    """

    folder: Path
    extension: Path
    packages: Path

    @property
    def python(self) -> Path:
        """Its Python, as the guest sees it."""
        return Path("/usr/bin", (self.folder / "usr/bin/python3").readlink().name)

    @property
    def python_version(self) -> str:
        """Such as ``3.11``."""
        return self.python.name.removeprefix("python")

    def has(self, path: Path) -> bool:
        """Whether it has a file or folder at this path of the guest."""
        return os.path.lexists(self.folder / path.relative_to("/"))


def find_system(architecture: Architecture) -> ForeignSystem:
    """That of an architecture, from the cache; the extension is compiled where it has changed.

    Raises:
        GuestMissingError: It has not been made, or there is no compiler for it.
        GuestError: The extension does not compile.
    """
    # apt and its like are imported for such guests only.
    from pyiommufd.testing.provision.foreign_extension import find_extension
    from pyiommufd.testing.provision.foreign_packages import packages_folder
    from pyiommufd.testing.provision.foreign_root import find_root

    root = find_root(architecture)
    extension = find_extension(architecture, root)
    return ForeignSystem(root.root, extension, packages_folder(architecture, root, cache_folder()))


def standard_library() -> set[Path]:
    """The folders on the import path that are of the interpreter itself."""
    folders = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    return folders | {folder / "lib-dynload" for folder in folders}


def programs_folder() -> Path:
    """The folder with the commands of this environment: the whole of it where it is a virtual one."""
    return Path(sys.prefix) if _in_venv() else Path(sysconfig.get_path("scripts"))


def _in_venv() -> bool:
    return sys.prefix != sys.base_prefix


def environment_layer(system: ForeignSystem) -> Layer:
    """What is to lie on top of this environment's folders, and of the root's own."""
    from pyiommufd.testing.provision.foreign_packages import compiled_parts

    layer: Layer = {}
    for part, place in compiled_parts(system.packages):
        layer[place.parent.resolve() / place.name] = str(COMPILED / part)
    package = Path(__file__).resolve().parents[2]
    layer[package / "_uapi.abi3.so"] = system.extension.read_bytes()
    packages = PACKAGES
    if _in_venv():
        prefix = Path(sys.prefix).resolve()
        layer[prefix / "pyvenv.cfg"] = _venv_configuration((prefix / "pyvenv.cfg").read_text()).encode()
        own = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        packages = prefix / "lib" / own / "site-packages"
        if own != system.python.name:
            layer[prefix / "lib" / system.python.name] = own
    for compiled in (system.folder / PACKAGES.relative_to("/")).glob("_cffi_backend*.so"):
        layer[packages / compiled.name] = compiled.read_bytes()
    if more := [folder for folder in _sites() if folder != PACKAGES]:
        lines = ["import site", *(f"site.addsitedir({str(folder)!r})" for folder in more)]
        layer[PACKAGES / "pyiommufd-guest.pth"] = "; ".join(lines).encode() + b"\n"
    layer |= {path: str(system.python) for path in _interpreters() if not _is_of(system, path)}
    for name in _COMMANDS:
        if Path(sysconfig.get_path("scripts")) == Path("/usr/bin") and (command := Path("/usr/bin", name)).is_file():
            layer[command] = command.read_bytes()
    return layer


def _is_of(system: ForeignSystem, path: Path) -> bool:
    return path.is_relative_to("/usr") and system.has(path)


def _venv_configuration(text: str) -> str:
    """A ``pyvenv.cfg`` of the root's Python."""
    kept = [line for line in text.splitlines() if line.partition("=")[0].strip() == "include-system-site-packages"]
    return "\n".join(["home = /usr/bin", *kept]) + "\n"


def _sites() -> list[Path]:
    """The folders of packages outside a virtual environment that this process imports from."""
    candidates = [*site.getsitepackages([sys.base_prefix, sys.base_exec_prefix]), site.getusersitepackages()]
    return [Path(entry) for entry in dict.fromkeys(candidates) if entry in sys.path and Path(entry).is_dir()]


def _interpreters() -> Iterator[Path]:
    """The names that this process's interpreter has, in real folders."""
    interpreter = Path(sys.executable).resolve()
    programs = [Path(program) for program in (sys.executable, getattr(sys, "_base_executable", "")) if program]
    folders = {Path(sys.prefix, "bin"), interpreter.parent, *(program.parent for program in programs)}
    for folder in sorted({folder.resolve() for folder in folders if folder.is_dir()}):
        yield from (path for path in sorted(folder.glob("python*")) if path.resolve() == interpreter)
