"""The root of a guest of another architecture: the distribution's packages of Python and of ordinary programs.

A guest of this machine's architecture sees this machine's own root. For another one the same release's packages are
unpacked into the cache, by apt and ``dpkg-deb``, and never installed: no root is needed, and nothing of them runs here.
The extension for that guest is compiled against the same packages.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyiommufd.testing.errors import GuestError, GuestMissingError
from pyiommufd.testing.provision.apt import Archive, missing_programs, os_release
from pyiommufd.testing.provision.architecture import Architecture
from pyiommufd.testing.provision.entry import FORMAT, Entry, entry_name
from pyiommufd.testing.provision.kernels import build_command, cache_folder
from pyiommufd.testing.provision.locked import locked
from pyiommufd.testing.provision.progress import Progress

PACKAGES = (
    # What runs pyiommufd, and what its extension is compiled against.
    "python3", "python3-cffi-backend", "libudev1", "libpython3-dev", "libc6-dev",
    # What says to Python where a library is.
    "libc-bin",
    # The initial file system's one program.
    "busybox-static",
    # What tests and people expect of a system, and have devices in use with.
    "bash", "coreutils", "dash", "dmsetup", "e2fsprogs", "findutils", "grep", "iproute2", "kmod", "mount", "pciutils",
    "procps", "sed", "util-linux",
)  # fmt: skip
"""The packages that a root is made of, with what they need."""

_UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/lib/systemd")


class ForeignRoot(Entry):
    """A root made earlier, in a folder of its own.

    Attributes:
        folder: The folder: ``root/`` with the unpacked packages, and the manifest.
        manifest: What it is: ``release`` (the distribution's), ``asked`` (`PACKAGES`), ``packages`` (the files it was
            unpacked from), ``python`` (such as ``3.11``) and ``compiled`` (whether its Python modules are).
    """

    __slots__ = ()

    @property
    def root(self) -> Path:
        """The root, with ``bin``, ``sbin`` and ``lib`` as links into ``usr``."""
        return self.folder / "root"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.root / f"usr/bin/python{self.manifest['python']}"

    @property
    def busybox(self) -> Path:
        """Its static busybox."""
        return self.root / "usr/bin/busybox"

    @property
    def headers(self) -> Path:
        """Python's headers; the C library's are in ``usr/include``."""
        return self.root / f"usr/include/python{self.manifest['python']}"


def find_root(
    architecture: Architecture, *, cache: Path | None = None, release: Mapping[str, str] | None = None
) -> ForeignRoot:
    """The root made last of the packages of this machine's release.

    Args:
        architecture: The guest's.
        cache: The `cache_folder`.
        release: The content of this machine's ``os-release``, as fields.

    Raises:
        GuestMissingError: There is none.
    """
    cache = cache_folder() if cache is None else cache
    if made := _made(cache, architecture, os_release() if release is None else release):
        return made
    raise GuestMissingError(
        f"there is no root for an {architecture.name} guest here: {build_command(architecture)} fetches its packages"
    )


def _made(cache: Path, architecture: Architecture, release: Mapping[str, str]) -> ForeignRoot | None:
    wanted = (_release_name(release), sorted(PACKAGES))
    for root in ForeignRoot.newest(cache / "roots", architecture):
        if (root.manifest["release"], sorted(root.manifest["asked"])) == wanted:
            return root
    return None


def _release_name(release: Mapping[str, str]) -> str:
    return " ".join(release.get(name, "?") for name in ("ID", "VERSION_CODENAME"))


def fetch(
    architecture: Architecture, *, cache: Path | None = None, etc: Path = Path("/etc/apt"),
    release: Mapping[str, str] | None = None, progress: Progress | None = None,
) -> ForeignRoot:  # fmt: skip
    """The root of the packages that this machine's release offers now: from the cache, or made.

    Works as any user, and may be called by several processes at once: the later ones wait. Without a connection to the
    archive, what was made earlier is used.

    Args:
        architecture: The guest's.
        cache: The `cache_folder`.
        etc: This machine's apt configuration.
        release: The content of this machine's ``os-release``, as fields.
        progress: What is told how far it is.

    Raises:
        GuestMissingError: This machine has no apt, or its archive has no such packages.
    """
    cache = cache_folder() if cache is None else cache
    progress = Progress(sys.stderr, "pyiommufd: ") if progress is None else progress
    release = os_release() if release is None else release
    if missing := missing_programs():
        raise GuestMissingError(
            f"a guest's root for {architecture.name} comes from Debian's or Ubuntu's archive, by {', '.join(missing)}, "
            "which is not here"
        )
    archive = Archive(cache / f"apt-{architecture.debian}", etc=etc, release=release, architecture=architecture)
    with locked(cache / "roots" / ".lock", progress, f"a root for {architecture.name}"):
        try:
            return _fetch(archive, cache, architecture, release, progress)
        except (GuestError, OSError) as error:
            if made := _made(cache, architecture, release):
                progress.step(f"{error}\nusing the root made earlier, {made.folder}")
                return made
            raise GuestMissingError(f"there is no root for an {architecture.name} guest: {error}") from error


def _fetch(
    archive: Archive, cache: Path, architecture: Architecture, release: Mapping[str, str], progress: Progress
) -> ForeignRoot:
    archive.configure()
    archive.update()
    files = archive.needed(PACKAGES)
    # Not of what they need in turn: where the release moves, some library is new every day.
    made_of = sorted(file for file in files if file.partition("_")[0] in PACKAGES)
    name = _release_name(release)
    folder = (
        cache / "roots" / entry_name(release.get("VERSION_CODENAME", "?"), architecture, str(FORMAT), name, *made_of)
    )
    if ready := ForeignRoot.load(folder):
        return ready
    progress.step(f"fetching a root for {architecture.name}: {len(files)} packages of {name}")
    facts: dict[str, Any] = {"release": name, "asked": list(PACKAGES), "packages": files}
    with ForeignRoot.made(folder, facts) as work:
        root = work / "root"
        archive.unpack(PACKAGES, files, root, progress)
        for unused in _UNUSED:
            shutil.rmtree(root / unused, ignore_errors=True)
        merge_usr(root)
        facts["python"] = _python_version(root)
        facts["compiled"] = _compile_modules(root, facts["python"])
    progress.step(f"Python {facts['python']} for {architecture.name}: {folder / 'root'}")
    return ForeignRoot(folder, facts)


def merge_usr(root: Path) -> None:
    """Make ``bin``, ``sbin`` and ``lib`` links into ``usr``, as an installed system has them: some packages rely on it.

    Args:
        root: A folder that packages were unpacked into.
    """
    for name in ("bin", "sbin", "lib"):
        top, below = root / name, root / "usr" / name
        if not top.is_symlink():
            below.mkdir(parents=True, exist_ok=True)
            if top.is_dir():
                _move_into(below, top)
            top.symlink_to(f"usr/{name}")


def _move_into(target: Path, source: Path) -> None:
    for path in list(source.iterdir()):
        if path.is_dir() and not path.is_symlink() and (target / path.name).is_dir():
            _move_into(target / path.name, path)
        else:
            path.rename(target / path.name)
    source.rmdir()


def _python_version(root: Path) -> str:
    found = [
        match[1] for path in root.glob("usr/bin/python3.*") if (match := re.fullmatch(r"python(3\.\d+)", path.name))
    ]
    if len(found) != 1:
        raise GuestError(f"the packages bring {'no Python' if not found else 'more than one Python'}")
    return found[0]


def _compile_modules(root: Path, version: str) -> bool:
    """Compile the root's Python modules, which takes its emulated processor tens of seconds.

    That takes an interpreter of this machine with the same bytecode; this release's own has it.

    Returns:
        Whether there was one.
    """
    for program in (sys.executable, f"python{version}", "/usr/bin/python3"):
        said = _said(program, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
        if said.strip() == version:
            # What cannot be compiled is for the guest to stumble over; so is nothing of what it uses.
            _said(
                program, "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash",
                "-s", str(root), "-p", "/", str(root / f"usr/lib/python{version}"), str(root / "usr/lib/python3"),
            )  # fmt: skip
            return True
    return False


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
