"""A newer QEMU beside the system's: the distribution's own packages, unpacked into the cache and never installed.

`fetch` returns a program that ``--qemu`` and ``PYIOMMUFD_QEMU`` take. It needs no root, which debootstrap would: apt,
with folders of its own and an empty list of installed packages, says what QEMU needs down to the C library, and
``dpkg-deb`` unpacks that. It runs with its own loader and libraries, so it does not matter how old this machine's are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyiommufd.testing.errors import GuestError, GuestMissingError
from pyiommufd.testing.option_names import option_name
from pyiommufd.testing.provision.apt import Archive, missing_programs, os_release, read_sources
from pyiommufd.testing.provision.architecture import AARCH64, X86_64, Architecture, own_architecture
from pyiommufd.testing.provision.entry import FORMAT, Entry, entry_name
from pyiommufd.testing.provision.kernels import build_command, cache_folder, release_order
from pyiommufd.testing.provision.locked import locked
from pyiommufd.testing.provision.progress import Progress

SUITES: Mapping[str, tuple[str, ...]] = {"debian": ("sid", "testing", "stable"), "ubuntu": ("devel", "rolling")}
"""Where a newer QEMU is looked for, by distribution, the newest first: those that move break now and then."""

_DATA_PACKAGES = ("qemu-system-data", "seabios", "ipxe-qemu")
_FIRMWARE_PACKAGES = {X86_64: (), AARCH64: ("qemu-efi-aarch64",)}
_FIRMWARE = Path("usr/share/qemu-efi-aarch64/QEMU_EFI.fd")
# Documentation is no small part of the packages, and nothing here reads it; nor UEFI in the form of flash memories.
_UNUSED = (
    "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/lib/systemd", "usr/share/AAVMF",
)  # fmt: skip
_DATA = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
_LIBRARIES = ("usr/lib/{triplet}", "lib/{triplet}", "usr/lib/{triplet}/pulseaudio")

# What proves that one starts and finds its firmware.
_TRIALS: Mapping[Architecture, tuple[str, ...]] = {
    X86_64: ("-machine", "q35", "-accel", "tcg", "-device", "edu", "-S"),
    AARCH64: ("-machine", "virt,gic-version=3,iommu=smmuv3", "-cpu", "max", "-accel", "tcg", "-device", "edu", "-S"),
}

_WRAPPER = """\
#!/bin/sh
# Runs the QEMU unpacked beside this file with the loader, libraries and firmware that belong to it.
root=$(dirname "$(readlink -f "$0")")/root
# Its modules are looked for where QEMU was to be installed, and those of another version are of no use.
QEMU_MODULE_DIR=$root/usr/lib/{triplet}/qemu
export QEMU_MODULE_DIR
exec "$root/{loader}" --library-path "{libraries}" "$root/usr/bin/{program}" {data} "$@"
"""


class FetchedQEMU(Entry):
    """A QEMU fetched earlier, in a folder of its own.

    Attributes:
        folder: The folder: the program, ``root/`` with the unpacked packages, and the manifest.
        manifest: What it is: ``version``, ``suite`` and ``packages`` (the files it was unpacked from).
    """

    __slots__ = ()

    @property
    def program(self) -> Path:
        """What to run."""
        (program,) = self.folder.glob("qemu-system-*")
        return program

    @property
    def version(self) -> str:
        """Such as ``11.1.3``."""
        return str(self.manifest["version"])


def find_firmware(program: Path, *, cache: Path | None = None) -> Path:
    """The UEFI that an aarch64 machine of a QEMU is to start with.

    That is the one fetched with it, else this machine's, else one fetched with another.

    Args:
        program: The QEMU.
        cache: The `cache_folder`.

    Raises:
        GuestMissingError: There is none.
    """
    for root in (program.resolve().parent / "root", Path("/")):
        if (root / _FIRMWARE).is_file():
            return root / _FIRMWARE
    if fetched := fetched_qemus(cache_folder() if cache is None else cache, AARCH64):
        return fetched[0].folder / "root" / _FIRMWARE
    raise GuestMissingError(
        f"the guest needs UEFI for aarch64: apt-get install {' '.join(_FIRMWARE_PACKAGES[AARCH64])}, or "
        f"{build_command(AARCH64)} fetches it"
    )


def fetched_qemus(cache: Path, architecture: Architecture = X86_64) -> list[FetchedQEMU]:
    """The whole ones among the QEMUs fetched earlier, the newest first.

    Args:
        cache: The `cache_folder`.
        architecture: That of the machines that they emulate.
    """
    return sorted(
        FetchedQEMU.newest(cache / "qemu", architecture), key=lambda qemu: release_order(qemu.version), reverse=True
    )


def fetch(
    *, architecture: Architecture = X86_64, cache: Path | None = None, suites: Sequence[str] | None = None,
    etc: Path = Path("/etc/apt"), release: Mapping[str, str] | None = None, progress: Progress | None = None,
) -> FetchedQEMU:  # fmt: skip
    """The newest QEMU that this machine's distribution offers: from the cache, or fetched.

    Works as any user, and may be called by several processes at once: the later ones wait. Without a connection to the
    archive, what was fetched earlier is used.

    Args:
        architecture: That of the machine that it is to emulate; for aarch64 its firmware comes with it.
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
    if missing := missing_programs():
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
                return _Fetch(cache, architecture, suite, etc, release, progress).run()
            except (GuestError, OSError) as error:
                refusals.append(f"{suite}: {error}")
        if earlier := fetched_qemus(cache, architecture):
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


class _Fetch:
    """One suite's QEMU, unpacked in a folder beside the final one."""

    def __init__(
        self, cache: Path, architecture: Architecture, suite: str, etc: Path, release: Mapping[str, str],
        progress: Progress,
    ) -> None:  # fmt: skip
        self._folder = cache / "qemu"
        self._architecture = architecture
        self._suite = suite
        self._archive = _Suite(cache / f"apt-{suite}", suite, etc, release)
        self._progress = progress
        self._triplet = own_architecture().triplet
        self._libraries = [name.format(triplet=self._triplet) for name in _LIBRARIES]

    def run(self) -> FetchedQEMU:
        self._archive.configure()
        self._archive.update()
        program = self._architecture.qemu
        firmware = _FIRMWARE_PACKAGES[self._architecture]
        names = (self._architecture.qemu_package, *firmware, *_DATA_PACKAGES)
        files = self._archive.needed(names)
        # Not the libraries' versions: in a suite that moves, some library is new every day.
        made_of = [next(file for file in files if file.startswith(f"{name}_")) for name in names[: 1 + len(firmware)]]
        found = re.search(r"(?:%3a|_)(\d+(?:\.\d+)+)", made_of[0])
        version = found[1] if found else "0"
        wrapper = _WRAPPER.replace("{program}", program).replace("{triplet}", self._triplet)
        folder = self._folder / entry_name(version, self._architecture, str(FORMAT), wrapper, self._suite, *made_of)
        if ready := FetchedQEMU.load(folder):
            return ready
        self._progress.step(f"fetching QEMU {version} and what it needs from {self._suite}: {len(files)} packages")
        facts: dict[str, Any] = {"version": version, "suite": self._suite, "packages": files}
        with FetchedQEMU.made(folder, facts) as work:
            self._archive.unpack(names, files, work / "root", self._progress)
            for name in _UNUSED:
                shutil.rmtree(work / "root" / name, ignore_errors=True)
            self._wrap(work, wrapper)
            facts["said"] = _try(work / program, _TRIALS[self._architecture])
            if firmware and not (work / "root" / _FIRMWARE).is_file():
                raise GuestError(f"{firmware[0]} brings no {_FIRMWARE}")
        fetched = FetchedQEMU(folder, facts)
        self._progress.step(f"{facts['said']}: {fetched.program}")
        return fetched

    def _wrap(self, work: Path, wrapper: str) -> None:
        root, program = work / "root", self._architecture.qemu
        folders = (*self._libraries, "usr/lib64", "lib64", "usr/lib", "lib")
        loaders = [path for folder in folders for path in (root / folder).glob("ld-linux-*.so.*")]
        # A link that leads out of the folder would be this machine's loader.
        here = [path for path in loaders if path.is_file() and path.resolve().is_relative_to(root)]
        if not here:
            raise GuestError("the packages bring no loader of programs")
        text = wrapper.format(
            loader=here[0].relative_to(root),
            libraries=":".join(f"$root/{name}" for name in self._libraries),
            data=" ".join(f'-L "$root/{name}"' for name in _DATA),
        )
        (work / program).write_text(text)
        (work / program).chmod(0o755)
        # Where a library is missing the loader takes this machine's, which may do today and not tomorrow.
        paths = ":".join(str(root / name) for name in self._libraries)
        command = [str(here[0]), "--library-path", paths, "--list", str(root / "usr/bin" / program)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.findall(r"^\s+(\S+) => (.*?)(?: \(0x|$)", result.stdout, re.MULTILINE)
        foreign = [name for name, path in found if not Path(path).is_relative_to(root)]
        if result.returncode != 0 or foreign:
            raise GuestError(f"the packages bring no {', '.join(foreign) or result.stderr.strip()}")


def _try(program: Path, trial: Sequence[str]) -> str:
    """What it says of itself, once it has proved that it starts and finds its firmware."""
    for arguments in (["--version"], [*trial, "-display", "none", "-monitor", "stdio", "-nodefaults"]):
        result = subprocess.run(
            [str(program), *arguments], input="quit\n", capture_output=True, text=True, timeout=120, check=False
        )
        if result.returncode != 0:
            raise GuestError(f"it does not run here: {(result.stderr or result.stdout).strip()}")
        if arguments[0] == "--version":
            said = result.stdout.partition("\n")[0]
    return said
