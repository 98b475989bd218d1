"""A newer QEMU beside the system's: the distribution's own packages, unpacked into the cache and never installed.

`fetch` returns a program that ``--qemu`` and ``PYIOMMUFD_QEMU`` take. It needs no root, which debootstrap would: apt,
with folders of its own and an empty list of installed packages, says what QEMU needs down to the C library, and
``dpkg-deb`` unpacks that. It runs with its own loader and libraries, so it does not matter how old this machine's are.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pyiommufd.testing.errors import GuestError, GuestMissingError
from pyiommufd.testing.option_names import option_name
from pyiommufd.testing.provision.apt import Archive, os_release, read_sources
from pyiommufd.testing.provision.kernels import cache_folder, release_order
from pyiommufd.testing.provision.locked import locked
from pyiommufd.testing.provision.progress import Progress

SUITES: Mapping[str, tuple[str, ...]] = {"debian": ("sid", "testing", "stable"), "ubuntu": ("devel", "rolling")}
"""Where a newer QEMU is looked for, by distribution, the newest first: those that move break now and then."""

_PACKAGES = ("qemu-system-x86", "qemu-system-data", "seabios", "ipxe-qemu")
_MANIFEST = "manifest.json"
_FORMAT = 1
_PROGRAM = "qemu-system-x86_64"
# Documentation is no small part of the packages, and nothing here reads it.
_UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/lib/systemd")
_DATA = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio")

_WRAPPER = """\
#!/bin/sh
# Runs the QEMU unpacked beside this file with the loader, libraries and firmware that belong to it.
root=$(dirname "$(readlink -f "$0")")/root
# Its modules are looked for where QEMU was to be installed, and those of another version are of no use.
QEMU_MODULE_DIR=$root/usr/lib/x86_64-linux-gnu/qemu
export QEMU_MODULE_DIR
exec "$root/{loader}" --library-path "{libraries}" "$root/usr/bin/qemu-system-x86_64" {data} "$@"
"""


@dataclass(frozen=True, slots=True)
class FetchedQEMU:
    """A QEMU fetched earlier, in a folder of its own.

    Attributes:
        folder: The folder: the program, ``root/`` with the unpacked packages, and the manifest.
        manifest: What it is: ``version``, ``suite`` and ``packages`` (the files it was unpacked from).
    """

    folder: Path
    manifest: Mapping[str, Any] = field(hash=False)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The QEMU in the folder, or None where there is none that is whole."""
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
            if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
                return None
            return cls(folder, manifest) if manifest.get("sha256") == _digest(folder) else None
        except (OSError, ValueError):
            return None

    @property
    def program(self) -> Path:
        """What to run."""
        return self.folder / _PROGRAM

    @property
    def version(self) -> str:
        """Such as ``11.1.3``."""
        return str(self.manifest["version"])


def fetched_qemus(cache: Path) -> list[FetchedQEMU]:
    """The whole ones among the QEMUs fetched earlier, the newest first.

    Args:
        cache: The `cache_folder`.
    """
    loaded = (FetchedQEMU.load(folder) for folder in sorted((cache / "qemu").glob("[!.]*")) if folder.is_dir())
    return sorted((qemu for qemu in loaded if qemu), key=lambda qemu: release_order(qemu.version), reverse=True)


def fetch(
    *, cache: Path | None = None, suites: Sequence[str] | None = None, etc: Path = Path("/etc/apt"),
    release: Mapping[str, str] | None = None, progress: Progress | None = None,
) -> FetchedQEMU:  # fmt: skip
    """The newest QEMU that this machine's distribution offers: from the cache, or fetched.

    Works as any user, and may be called by several processes at once: the later ones wait. Without a connection to the
    archive, what was fetched earlier is used.

    Args:
        cache: The `cache_folder`.
        suites: Where to look, the first that has a working QEMU counts; None: `SUITES` of this distribution.
        etc: This machine's apt configuration.
        release: The content of this machine's ``os-release``, as fields.
        progress: What is told how far it is.

    Raises:
        GuestMissingError: This machine has no apt, or no suite has a QEMU that works here; with each one's reason.
    """
    cache = cache_folder() if cache is None else cache
    progress = Progress(sys.stderr, "pyiommufd: ") if progress is None else progress
    release = os_release() if release is None else release
    if missing := [name for name in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(name) is None]:
        raise GuestMissingError(
            f"a newer QEMU comes from Debian's or Ubuntu's archive, by {', '.join(missing)}, which is not here: "
            f"name one with {option_name('qemu')} or PYIOMMUFD_QEMU"
        )
    distribution = release.get("ID", "")
    suites = SUITES.get(distribution, ()) if suites is None else suites
    refusals = [] if suites else [f"no suite with a newer QEMU is known for the distribution {distribution or '?'}"]
    with locked(cache / "qemu" / ".lock", progress, "a newer QEMU"):
        for suite in suites:
            try:
                return _Fetch(cache, suite, etc, release, progress).run()
            except (GuestError, OSError) as error:
                refusals.append(f"{suite}: {error}")
        if earlier := fetched_qemus(cache):
            progress.step("\n".join([*refusals, f"using QEMU {earlier[0].version}, fetched earlier"]))
            return earlier[0]
    raise GuestMissingError(
        "\n  ".join(
            [f"there is no newer QEMU available; name one with {option_name('qemu')} or PYIOMMUFD_QEMU:", *refusals]
        )
    )


class _Suite(Archive):
    """apt with one suite of the mirror that this machine gets its own packages from."""

    def __init__(self, folder: Path, suite: str, etc: Path, release: Mapping[str, str]) -> None:
        super().__init__(folder, etc=etc, release=release)
        self._suite = suite
        self._codename_here = release.get("VERSION_CODENAME", "")

    def _stanzas(self) -> list[str]:
        sources = [source for source in read_sources(self._etc) if "main" in source.components]
        for source in sources:
            # The security archive is another folder of the mirror, and lacks the suites asked for here.
            if {self._codename_here, "sid", "unstable", "testing", "stable"} & set(source.suites):
                return [source.stanza([self._suite])]
        raise GuestMissingError(f"no archive of {self._codename_here or 'this distribution'} in {self._etc}")

    def needed(self, names: Sequence[str]) -> list[str]:
        """The file names of the packages, and of all that they need.

        Raises:
            GuestError: The suite cannot be reached, or they cannot be had from it.
        """
        result = self._install("--print-uris", *names)
        files = re.findall(r"^'\S+' (\S+\.deb) \d+", result.stdout, re.MULTILINE)
        if result.returncode != 0 or not files:
            # The lists may be out of date, or never have come.
            (self._folder / "updated").unlink(missing_ok=True)
            raise GuestError("; ".join(filter(None, (self._complaints, _complaint(result)))))
        return files

    def fetch_all(self, names: Sequence[str], files: Sequence[str]) -> list[Path]:
        """Fetch the packages; apt checks them against the signed lists.

        Raises:
            GuestError: Not all of them came.
        """
        result = self._install("--download-only", *names)
        fetched = [self._folder / "cache/archives" / file for file in files]
        if result.returncode != 0 or not all(file.is_file() for file in fetched):
            (self._folder / "updated").unlink(missing_ok=True)
            raise GuestError(_complaint(result))
        return fetched

    def clean(self) -> None:
        """Drop the fetched packages."""
        self._run("apt-get", "clean")

    def _install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run("apt-get", "install", "-q", "-y", "--no-install-recommends", *arguments)


def _complaint(result: subprocess.CompletedProcess[str]) -> str:
    return result.stderr.strip() or f"apt-get: status {result.returncode}, and no packages"


class _Fetch:
    """One suite's QEMU, unpacked in a folder beside the final one."""

    def __init__(self, cache: Path, suite: str, etc: Path, release: Mapping[str, str], progress: Progress) -> None:
        self._folder = cache / "qemu"
        self._suite = suite
        self._archive = _Suite(cache / f"apt-{suite}", suite, etc, release)
        self._progress = progress

    def run(self) -> FetchedQEMU:
        self._archive.configure()
        self._archive.update()
        files = self._archive.needed(_PACKAGES)
        package = next(file for file in files if file.startswith(f"{_PACKAGES[0]}_"))
        found = re.search(r"(?:%3a|_)(\d+(?:\.\d+)+)", package)
        version = found[1] if found else "0"
        # Not the libraries' versions: in a suite that moves, some library is new every day.
        key = hashlib.sha256(f"{_FORMAT}\0{_WRAPPER}\0{self._suite}\0{package}".encode()).hexdigest()
        folder = self._folder / f"{version}-{key[:12]}"
        if ready := FetchedQEMU.load(folder):
            return ready
        self._progress.step(f"fetching QEMU {version} and what it needs from {self._suite}: {len(files)} packages")
        work = folder.with_name(f".{folder.name}.unpacking")
        shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed: this one holds the lock
        try:
            self._unpack(self._archive.fetch_all(_PACKAGES, files), work / "root")
            self._wrap(work)
            said = _try(work / _PROGRAM)
            facts = {"version": version, "suite": self._suite, "packages": files, "said": said}
            manifest = {"format": _FORMAT, "sha256": _digest(work), **facts}
            (work / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        self._archive.clean()
        fetched = FetchedQEMU.load(folder)
        if fetched is None:
            raise GuestError(f"what was just unpacked into {folder} is not there whole: is the disk failing?")
        self._progress.step(f"{said}: {fetched.program}")
        return fetched

    def _unpack(self, packages: Sequence[Path], root: Path) -> None:
        root.mkdir(parents=True)
        for number, package in enumerate(packages, start=1):
            self._progress.update(f"{number} packages unpacked")
            result = subprocess.run(
                ["dpkg-deb", "-x", str(package), str(root)], capture_output=True, text=True, check=False
            )
            if result.returncode != 0:
                raise GuestError(f"dpkg-deb -x {package.name}: {result.stderr.strip()}")
        for name in _UNUSED:
            shutil.rmtree(root / name, ignore_errors=True)

    def _wrap(self, work: Path) -> None:
        root = work / "root"
        loaders = [f"{folder}/ld-linux-x86-64.so.2" for folder in (*_LIBRARIES, "usr/lib64", "lib64")]
        # A link that leads out of the folder would be this machine's loader.
        here = [name for name in loaders if (root / name).is_file() and (root / name).resolve().is_relative_to(root)]
        if not here:
            raise GuestError("the packages bring no loader of programs")
        text = _WRAPPER.format(
            loader=here[0],
            libraries=":".join(f"$root/{name}" for name in _LIBRARIES),
            data=" ".join(f'-L "$root/{name}"' for name in _DATA),
        )
        (work / _PROGRAM).write_text(text)
        (work / _PROGRAM).chmod(0o755)
        # Where a library is missing the loader takes this machine's, which may do today and not tomorrow.
        paths = ":".join(str(root / name) for name in _LIBRARIES)
        command = [str(root / here[0]), "--library-path", paths, "--list", str(root / "usr/bin" / _PROGRAM)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.findall(r"^\s+(\S+) => (.*?)(?: \(0x|$)", result.stdout, re.MULTILINE)
        foreign = [name for name, path in found if not Path(path).is_relative_to(root)]
        if result.returncode != 0 or foreign:
            raise GuestError(f"the packages bring no {', '.join(foreign) or result.stderr.strip()}")


def _try(program: Path) -> str:
    """What it says of itself, once it has proved that it starts and finds its firmware."""
    for arguments in (["--version"], ["-machine", "q35", "-accel", "tcg", "-device", "edu", "-S"]):
        if arguments[0] != "--version":
            arguments += ["-display", "none", "-monitor", "stdio", "-nodefaults"]
        result = subprocess.run(
            [str(program), *arguments], input="quit\n", capture_output=True, text=True, timeout=120, check=False
        )
        if result.returncode != 0:
            raise GuestError(f"it does not run here: {(result.stderr or result.stdout).strip()}")
        if arguments[0] == "--version":
            said = result.stdout.partition("\n")[0]
    return said


def _digest(folder: Path) -> str:
    """A digest of every name and all content below a folder, its manifest aside."""
    digest = hashlib.sha256()
    for name, content in _content(folder):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _content(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            yield name, str(path.readlink()).encode()
        elif path.is_file() and name != _MANIFEST:
            yield name, path.read_bytes()
