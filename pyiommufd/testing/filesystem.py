"""What the guest sees of this machine's files, and where.

The guest's root is a tmpfs. The host's system folders, this Python environment and the working folder are mounted
into it by 9p, read-only and at the paths they have here; of ``/etc`` a few files are copied. The working folder
gets a tmpfs on top, so that programs may write there; what they write is lost with the guest. One folder,
`RESULTS`, is the host's and writable.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = "/results"
"""Where the guest sees the writable folder of the host."""

_OWN_TREES = ("/proc", "/sys", "/dev", "/.guest", "/etc", RESULTS)
_OWN_FOLDERS = ("/", "/run", "/dev/shm")  # noqa: S108 - themselves the guest's; what is in them may be the host's

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")

# Nothing here is secret: no shadow, no keys, no credentials.
_ETC = (
    "alternatives", "bash.bashrc", "ca-certificates.conf", "debian_version", "fonts", "group", "host.conf", "hosts",
    "inputrc", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "lsb-release", "magic", "mime.types",
    "networks", "nsswitch.conf", "os-release", "passwd", "profile", "protocols", "python3", "rpc", "services",
    "shells", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Export:
    """A folder of the host that the guest mounts.

    Attributes:
        source: Where it is on the host.
        target: Where the guest sees it.
        writable: Whether the guest may write to it.
    """

    source: str
    target: str
    writable: bool = False


@dataclass(slots=True)
class GuestFiles:
    """The guest's root: what is mounted where.

    Attributes:
        exports: The host's folders; none is inside another that is mounted as well.
        links: Symbolic links outside every export, as path to target.
        overlay: The working folder, which gets a tmpfs on top; None where it is one of the guest's own.
        etc: What is copied of ``/etc``, as path to content (bytes) or link target (str).
    """

    exports: list[Export] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    overlay: str | None = None
    etc: dict[str, bytes | str] = field(default_factory=dict)

    @classmethod
    def plan(cls, *, folder: str, results: str | None, extra: Iterable[str] = ()) -> GuestFiles:
        """Decide what this guest sees.

        Args:
            folder: The working folder, absolute.
            results: The host's folder for `RESULTS`, or None for none.
            extra: More folders to see read-only.

        Raises:
            FileNotFoundError: One of the folders does not exist.
            ValueError: One is in a tree that is the guest's own, such as ``/sys``.
        """
        files = cls(etc=dict(_etc_entries()))
        real_folder = os.path.realpath(folder, strict=True)
        wanted = [path for path in (*_SYSTEM, *python_folders()) if os.path.isdir(path)]
        for path in (folder, *extra):
            real_path = os.path.realpath(path, strict=True)
            if not _mountable(real_path) and real_path not in (*_OWN_TREES, *_OWN_FOLDERS):
                raise ValueError(f"the guest cannot have {real_path}: it has a {_own(real_path)} of its own")
        if _mountable(real_folder):
            wanted.append(folder)
            files.overlay = real_folder
        real = set()
        for path in [*wanted, *extra]:
            target = files._follow(path)
            if _mountable(target):
                real.add(target)
        for path in sorted(real):
            # Sorted, so whatever covers a path comes before it.
            if not files._covers(path):
                files.exports.append(Export(path, path))
        files.links = {path: target for path, target in files.links.items() if not files._covers(path)}
        if results is not None:
            files.exports.append(Export(os.path.realpath(results, strict=True), RESULTS, writable=True))
        return files

    def _follow(self, path: str) -> str:
        """The real path, noting every symbolic link on the way."""
        done, rest = "/", [part for part in path.split("/") if part]
        for _ in range(200):
            if not rest:
                return done
            part = rest.pop(0)
            if part == "..":
                done = os.path.dirname(done)
                continue
            here = os.path.join(done, part)
            if os.path.islink(here):
                target = os.readlink(here)
                self.links[here] = target
                rest = [piece for piece in target.split("/") if piece and piece != "."] + rest
                done = "/" if target.startswith("/") else done
            else:
                done = here
        raise OSError(f"too many symbolic links in {path}")

    def _covers(self, path: str) -> bool:
        return any(is_inside(path, export.target) for export in self.exports)


def is_inside(path: str, folder: str) -> bool:
    """Whether the path is the folder or below it; both absolute and normal."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _mountable(path: str) -> bool:
    if path in _OWN_FOLDERS or is_inside(path, "/dev/shm"):  # noqa: S108
        return path not in _OWN_FOLDERS
    return not any(is_inside(path, own) for own in _OWN_TREES)


def _own(path: str) -> str:
    return next(own for own in _OWN_TREES if is_inside(path, own))


def python_folders() -> list[str]:
    """The folders of this Python environment: prefixes, the import path, and this package itself."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    executables = (sys.executable, getattr(sys, "_base_executable", sys.executable))
    folders = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    folders += [os.path.dirname(program) for program in executables if program]
    folders += [os.path.dirname(os.path.realpath(program)) for program in executables if program]
    # An editable install puts a source tree on the path; the package is all that is needed of ours. A home folder
    # gets there by running a script in it, and is not to be shown whole.
    skipped = {os.path.dirname(package), "/", os.path.realpath(Path.home())}
    folders += [entry for entry in sys.path if entry.startswith("/") and os.path.realpath(entry) not in skipped]
    return [folder for folder in dict.fromkeys([*folders, package]) if os.path.isdir(folder)]


def _etc_entries() -> Iterable[tuple[str, bytes | str]]:
    for name in (*_ETC, f"python{sys.version_info[0]}.{sys.version_info[1]}"):
        root = os.path.join("/etc", name)
        if os.path.islink(root) or os.path.isfile(root):
            yield from _etc_entry(root)
            continue
        for folder, folders, names in os.walk(root):
            for child in (*folders, *names):
                path = os.path.join(folder, child)
                if os.path.islink(path) or os.path.isfile(path):
                    yield from _etc_entry(path)


def _etc_entry(path: str) -> Iterable[tuple[str, bytes | str]]:
    if os.path.islink(path):
        yield path, os.readlink(path)
        return
    try:
        yield path, Path(path).read_bytes()
    except PermissionError:
        return  # what this user may not read is none of the guest's business


def guest_environment() -> dict[str, str]:
    """The environment of commands in the guest: this Python environment's programs first, nothing private."""
    kept = ("LANG", "LANGUAGE", "TERM", "TZ", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "CI", "VIRTUAL_ENV")
    prefixes = ("LC_", "PYTHON", "PYTEST_", "COVERAGE_", "HYPOTHESIS_", "PYIOMMUFD_")
    environment = {key: value for key, value in os.environ.items() if key in kept or key.startswith(prefixes)}
    folders = [os.path.join(sys.prefix, "bin"), os.path.dirname(sys.executable)]
    system = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    environment["PATH"] = ":".join(dict.fromkeys(folders + system))
    environment |= {"HOME": "/root", "USER": "root", "LOGNAME": "root", "TMPDIR": "/tmp", "SHELL": "/bin/sh"}  # noqa: S108
    environment |= {"PYIOMMUFD_GUEST": "1", "PYIOMMUFD_RESULTS": RESULTS}
    return environment
