"""What the guest sees of this machine's files, and where.

The guest's root is a tmpfs. The host's system folders, this Python environment and the working folder are mounted
into it by 9p, read-only and at the paths they have here; of ``/etc`` a few files are copied. The working folder
gets a tmpfs on top, so that programs may write there; what they write is lost with the guest. One folder,
`RESULTS`, is the host's and writable; see `Export.qemu_options` for what comes out.

A guest of another architecture has the system folders of a root of its own in place of this machine's (see `foreign`).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyiommufd.testing.guest.foreign import (
    COMPILED,
    OWN_FOLDERS,
    ForeignSystem,
    Layer,
    environment_layer,
    programs_folder,
    standard_library,
)

RESULTS = "/results"
"""Where the guest sees the writable folder of the host."""

MODULES = "/modules"
"""Where the guest has the modules of a kernel built by `kernel_build`, to be loaded by insmod."""

SPARE_FOLDER = "/.guest/bin"
"""Programs of busybox, for a host that has none of the name; last on the PATH."""

_OWN_TREES = tuple(map(Path, ("/proc", "/sys", "/dev", "/.guest", "/etc", RESULTS, MODULES)))
# Folders that the guest has itself, but that may contain folders of the host.
_OWN_FOLDERS = tuple(map(Path, ("/", "/run", "/dev/shm")))  # noqa: S108

_SYSTEM = tuple(map(Path, ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")))

# Nothing here is secret: no shadow, no keys, no credentials.
_ETC = (
    "alternatives", "bash.bashrc", "ca-certificates.conf", "debian_version", "fonts", "group", "host.conf", "hosts",
    "inputrc", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "lsb-release", "magic", "mime.types",
    "networks", "nsswitch.conf", "os-release", "passwd", "profile", "protocols", "python3",
    f"python{sys.version_info[0]}.{sys.version_info[1]}", "rpc", "services", "shells", "ssl/certs",
    "ssl/openssl.cnf", "terminfo", "timezone",
)  # fmt: skip

# Of these, what belongs to the system folders, and is never this machine's where those are not.
_ETC_OF_SYSTEM = ("alternatives", "debian_version", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "python")


@dataclass(frozen=True, slots=True)
class Export:
    """A folder of the host that the guest mounts.

    Attributes:
        source: Where it is on the host.
        target: Where the guest sees it.
        writable: Whether the guest may write to it.
        layer: Files that the guest sees on top of it, by their paths below the folder.
    """

    source: Path
    target: Path
    writable: bool = False
    layer: Layer = field(default_factory=dict, compare=False)

    def qemu_options(self) -> str:
        """How QEMU treats the files: options of its ``-fsdev local``.

        A guest's programs are root there. In a writable folder that were shared as it is, they could make set-uid
        programs of this process's user, who may be root, and links to anywhere. So all they make are plain files and
        folders of QEMU's user, while the guest runs as after any end of it. What guests are to take these for QEMU
        keeps in extended attributes or, where the file system has none, in folders ``.virtfs_metadata``, which
        guests do not see.
        """
        if not self.writable:
            return "security_model=none,readonly=on"
        model = "mapped-xattr"
        try:
            os.getxattr(self.source, "user.virtfs.mode")
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                model = "mapped-file"
        # QEMU's umask, which is that of this process, takes from it.
        return f"security_model={model},fmode=0666,dmode=0777"


@dataclass(slots=True)
class GuestFiles:
    """The guest's root: what is mounted where.

    Attributes:
        exports: The host's folders, each after one that it is inside of; there are such inside a `ForeignSystem` alone.
        links: Symbolic links outside every export, as path to target.
        overlay: The working folder, which gets a tmpfs on top; None where it is one of the guest's own.
        etc: What is copied of ``/etc``, as path to content (bytes) or link target (str).
        files: Files outside every export and ``/etc``, as path to content.
        system: Where the programs of a guest of another architecture are from; None: they are this machine's.
    """

    exports: list[Export] = field(default_factory=list)
    links: dict[Path, str] = field(default_factory=dict)
    overlay: Path | None = None
    etc: dict[Path, bytes | str] = field(default_factory=dict)
    files: dict[Path, bytes] = field(default_factory=dict)
    system: ForeignSystem | None = None

    @classmethod
    def plan(
        cls, *, folder: Path, results: Path | None, extra: Iterable[Path] = (), system: ForeignSystem | None = None
    ) -> GuestFiles:
        """Decide what this guest sees.

        Args:
            folder: The working folder, absolute.
            results: The host's folder for `RESULTS`, or None for none.
            extra: More folders to see read-only, absolute.
            system: Where the programs of a guest of another architecture are from; None: they are this machine's.

        Raises:
            FileNotFoundError: One of the folders does not exist.
            ValueError: One is in a tree that is the guest's own, such as ``/sys``.
        """
        files = cls(etc=dict(_etc_entries(system)), system=system)
        named = [folder, *extra]
        for path in named:
            real = path.resolve(strict=True)
            if not files._mountable(real) and real not in (*_OWN_TREES, *_OWN_FOLDERS, *OWN_FOLDERS):
                own = next(tree for tree in _OWN_TREES if real.is_relative_to(tree))
                raise ValueError(f"the guest cannot see {real}: it has its own {own}")
        if files._mountable(folder.resolve()):
            files.overlay = folder.resolve()
        wanted = [*(_SYSTEM if system is None else ()), *python_folders(interpreter=system is None)]
        # Sorted, so whatever covers a path comes before it.
        for path in sorted({files._follow(path) for path in (*filter(Path.is_dir, wanted), *named)}):
            if files._mountable(path) and not files._covers(path):
                files.exports.append(Export(path, path))
        files.links = {path: target for path, target in files.links.items() if not files._covers(path)}
        if system is not None:
            files._put_on(system)
        if results is not None:
            files.exports.append(Export(results.resolve(strict=True), Path(RESULTS), writable=True))
        return files

    def _put_on(self, system: ForeignSystem) -> None:
        """Have the system folders, and what is compiled, from there."""
        layer = environment_layer(system)
        for name in _SYSTEM:
            source = system.folder / name.relative_to("/")
            self.links.pop(name, None)
            if source.is_symlink():
                self.links[name] = str(source.readlink())
            elif source.is_dir():
                self.exports.append(Export(source, name))
        if system.packages.is_dir():
            self.exports.append(Export(system.packages, COMPILED))
        self.exports.sort(key=lambda export: export.target)
        for path, target in list(self.links.items()):
            if path not in _SYSTEM and any(path.is_relative_to(name) for name in _SYSTEM):
                del self.links[path]
                layer |= {} if system.has(path) else {path: target}
        # A folder to mount each of the others on.
        layer |= {export.target: None for export in self.exports}
        for path, content in layer.items():
            holders = [one for one in self.exports if path != one.target and path.is_relative_to(one.target)]
            if holders:
                if content is not None or not (holders[-1].source / path.relative_to(holders[-1].target)).is_dir():
                    holders[-1].layer[path.relative_to(holders[-1].target)] = content
            elif isinstance(content, str):
                self.links[path] = content
            elif content is not None:
                self.files[path] = content

    def _follow(self, path: Path) -> Path:
        """The real path, noting every symbolic link on the way."""
        done, rest = Path("/"), list(path.parts[1:])
        for _ in range(400):
            if not rest:
                return done
            part = rest.pop(0)
            here = done.parent if part == ".." else done / part
            if here.is_symlink():
                target = here.readlink()
                self.links[here] = str(target)
                rest = [piece for piece in target.parts if piece != "/"] + rest
                done = Path("/") if target.is_absolute() else done
            else:
                done = here
        raise OSError(f"too many symbolic links in {path}")

    def _covers(self, path: Path) -> bool:
        return any(path.is_relative_to(export.target) for export in self.exports)

    def _mountable(self, path: Path) -> bool:
        if path in _OWN_FOLDERS or (self.system is not None and path in OWN_FOLDERS):
            return False
        if path.is_relative_to("/dev/shm"):  # noqa: S108
            return True
        return not any(path.is_relative_to(own) for own in _OWN_TREES)


def python_folders(*, interpreter: bool = True) -> list[Path]:
    """The folders of this Python environment: prefixes, the import path, and this package itself.

    Args:
        interpreter: With Python itself; else only what packages are in.
    """
    package = Path(__file__).absolute().parents[2]
    # Running a script puts its folder on the path, and an editable install its source tree: neither is the
    # environment, and of ours the package is all that is needed.
    main = Path(getattr(sys.modules.get("__main__"), "__file__", None) or package)
    skipped = {Path("/"), Path.home().resolve(), package.parent.resolve(), main.resolve().parent}
    if interpreter:
        programs = [Path(program) for program in (sys.executable, getattr(sys, "_base_executable", "")) if program]
        folders = [Path(p) for p in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)]
        folders += [program.parent for program in programs] + [program.resolve().parent for program in programs]
    else:
        folders = [programs_folder()]
        skipped |= standard_library()
    entries = [Path(entry) for entry in sys.path if entry.startswith("/")]
    folders += [entry for entry in entries if entry.resolve() not in skipped]
    return [folder for folder in dict.fromkeys([*folders, package]) if folder.is_dir()]


def _etc_entries(system: ForeignSystem | None) -> Iterator[tuple[Path, bytes | str]]:
    for name in _ETC:
        top = Path("/etc", name)
        within = Path("/")
        if system is not None and (system.has(top) or name.startswith(_ETC_OF_SYSTEM)):
            within = system.folder
        source = within / top.relative_to("/")
        below = sorted(source.rglob("*")) if source.is_dir() and not source.is_symlink() else []
        for path in (source, *below):
            target = Path("/", path.relative_to(within))
            if path.is_symlink():
                yield target, str(path.readlink())
            elif path.is_file() and os.access(path, os.R_OK):
                yield target, path.read_bytes()


def guest_environment() -> dict[str, str]:
    """The environment of commands in the guest: this Python environment's programs first, nothing private."""
    kept = ("LANG", "LANGUAGE", "TERM", "TZ", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "CI", "VIRTUAL_ENV")
    prefixes = ("LC_", "PYTHON", "PYTEST_", "COVERAGE_", "HYPOTHESIS_", "PYIOMMUFD_")
    environment = {key: value for key, value in os.environ.items() if key in kept or key.startswith(prefixes)}
    # Compiling what is not compiled yet takes an emulated machine tens of seconds; it is lost with the guest anyway.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    folders = [f"{sys.prefix}/bin", str(Path(sys.executable).parent)]
    system = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", SPARE_FOLDER]
    environment["PATH"] = ":".join(dict.fromkeys(folders + system))
    environment |= {"HOME": "/root", "USER": "root", "LOGNAME": "root", "TMPDIR": "/tmp", "SHELL": "/bin/sh"}  # noqa: S108
    environment |= {"PYIOMMUFD_GUEST": "1", "PYIOMMUFD_RESULTS": RESULTS, "PYIOMMUFD_MODULES": MODULES}
    return environment
