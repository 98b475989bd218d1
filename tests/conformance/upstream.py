"""The kernel's own C programs: built from the source that a cached kernel keeps, once, into the cache."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.testing.drivers import igb
from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.guest.machine import GuestDevice, Igb, RootPort
from pyiommufd.testing.plugin.configuration import GuestConfiguration
from pyiommufd.testing.provision.kernel_build import complete_source
from pyiommufd.testing.provision.kernels import CachedKernel, cache_folder
from pyiommufd.testing.provision.locked import locked
from pyiommufd.testing.provision.progress import Progress

SELFTESTS = Path("tools/testing/selftests")
_PROGRAM = Path(__file__).with_name("program.c")
_MANIFEST = "manifest.json"
_FORMAT = 2


@dataclass(frozen=True)
class Program:
    """C programs of the kernel's tests that belong together, and where their twins are.

    Attributes:
        name: As the report calls them.
        folder: Their folder, below the source's `SELFTESTS`.
        sources: Files there, each with a program of its own.
        libraries: What each is linked with.
        twins: The folder with the twins.
        shared: Patterns of the files there that are part of each program.
        includes: Where they look for headers, below the source's top folder.
        huge_pages: How many huge pages of 2 MiB they want reserved.
        device: The vendor and device id of the PCI device that they want, on its vfio driver; empty: none.
        devices: What the guest has to have.
        newer_qemu: Whether that takes a newer QEMU than the system's may be.
        memory: MiB that the guest has.
        kernel_arguments: More for its kernel's command line.
        left_out: Variants that are not run.
        remark: What is not run, and why.
    """

    name: str
    folder: str
    sources: tuple[str, ...]
    libraries: tuple[str, ...]
    twins: str
    shared: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    huge_pages: int = 0
    device: str = ""
    devices: tuple[GuestDevice, ...] = ()
    newer_qemu: bool = False
    memory: int = 1024
    kernel_arguments: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    remark: str = ""

    @property
    def programs(self) -> list[str]:
        """The names of the programs."""
        return [Path(source).stem for source in self.sources]

    def machine(self, kernel: str, qemu: str | None) -> GuestConfiguration:
        """The guest that they want.

        Args:
            kernel: The kernel image that it boots.
            qemu: The QEMU to run; None: `find_qemu`.
        """
        return GuestConfiguration(
            kernel=kernel,
            qemu=qemu,
            devices=self.devices or None,
            memory=self.memory,
            kernel_arguments=self.kernel_arguments,
        )


# What a variant of VFIO's tests maps memory by, and which memory, or binds a virtual function with.
_CONTAINERS = ("vfio_type1_iommu", "vfio_type1v2_iommu", "iommufd_compat_type1", "iommufd_compat_type1v2")
_MEMORY = ("_anonymous", "_anonymous_hugetlb_2mb", "_anonymous_hugetlb_1gb")
_TOKENS = ("_same_uuid", "_diff_uuid", "_null_uuid")

PROGRAMS = (
    Program("iommufd", "iommu", ("iommufd.c",), ("cap",), "tests/conformance/iommufd", huge_pages=64),
    Program(
        "vfio",
        "vfio",
        sources=(
            "vfio_iommufd_setup_test.c", "vfio_pci_device_test.c", "vfio_dma_mapping_test.c",
            "vfio_dma_mapping_mmio_test.c", "vfio_pci_driver_test.c", "vfio_pci_sriov_uapi_test.c",
        ),
        libraries=("uuid",),
        twins="tests/conformance/vfio",
        shared=("lib/**/*.c",),
        includes=("tools/testing/selftests/vfio/lib/include", "tools/include", "tools/arch/x86/include"),
        huge_pages=16,
        device=f"{igb.VENDOR_ID:04x}:{igb.DEVICE_ID:04x}",
        devices=(RootPort(Igb()),),
        newer_qemu=True,
        # A GiB for the programs' region, and a page of one GiB, which is available at boot only.
        memory=4096,
        kernel_arguments=(
            "hugepagesz=1G", "hugepages=1", "transparent_hugepage_shmem=always", "vfio_pci.enable_sriov=1",
        ),
        left_out=tuple(mode + each for mode in _CONTAINERS for each in ("", *_MEMORY, *_TOKENS)),
        remark="not run: the variants of containers, which are not iommufd; init_perf, which only measures",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a case of a C program came to.

    Attributes:
        result: ``pass``, ``fail``, ``skip``, ``xfail`` or ``xpass``.
        reason: What the program says of a skip or an expected failure.
    """

    result: str
    reason: str = ""


class ProgramError(GuestError):
    """A C program could not be built, or did not run to its end."""


_RESULT = re.compile(r"(not )?ok \d+ (\S+)(?: # (SKIP|XFAIL|XPASS|TODO)\b[ :]*(.*))?")
_PLAN = re.compile(r"1\.\.(\d+)")


def read_tap(text: str) -> dict[str, Outcome]:
    """The outcome of each case in what a program of kselftest_harness.h has printed.

    Raises:
        ProgramError: It planned more cases than it has a result of: it died.
    """
    planned = None
    outcomes: dict[str, Outcome] = {}
    for line in text.splitlines():
        if match := _PLAN.fullmatch(line):
            planned = int(match[1])
        elif match := _RESULT.fullmatch(line):
            bad, name, directive, reason = match.groups()
            result = "fail" if bad else "pass"
            if directive in ("SKIP", "XFAIL", "XPASS"):
                result = directive.lower()
            outcomes[name] = Outcome(result, reason or "")
    if planned != len(outcomes):
        raise ProgramError(f"of {planned} planned cases {len(outcomes)} have a result: the program died")
    return outcomes


class _Build:
    """How programs are built from a kernel's files."""

    def __init__(self, program: Program, kernel: CachedKernel) -> None:
        self._program = program
        self._root = kernel.folder / "source"
        self._headers = kernel.folder / "headers" / "include"
        self.release = kernel.release

    def command(self, source: str, target: Path) -> list[str]:
        """As the kernel's lib.mk and the folder's Makefile have it."""
        folder = self._root / SELFTESTS / self._program.folder
        shared = sorted(path for pattern in self._program.shared for path in folder.glob(pattern))
        return [
            *("gcc", "-Wall", "-O2", "-Wno-unused-function", "-D_GNU_SOURCE="),
            *("-isystem", str(self._headers), f"-I{self._root / SELFTESTS}"),
            *(f"-I{self._root / include}" for include in self._program.includes),
            *("-o", str(target), f'-DPROGRAM="{folder / source}"', str(_PROGRAM), *map(str, shared)),
            *(f"-l{library}" for library in self._program.libraries),
        ]

    def _inputs(self) -> Iterator[Path]:
        """What they are made from, but for the compiler's and the C library's own."""
        selftests = self._root / SELFTESTS
        yield from selftests.glob("kselftest*.h")
        yield from (selftests / self._program.folder).rglob("*.[ch]")
        yield self._root / "drivers/iommu/iommufd/iommufd_test.h"
        for include in self._program.includes:
            yield from (self._root / include).rglob("*.h")
        for folder in ("linux", "asm", "asm-generic"):
            yield from (self._headers / folder).rglob("*.h")

    def key(self) -> str:
        """What names the entry in the cache: the same for the same files, flags and compiler."""
        digest = hashlib.sha256()
        compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
        commands = [word for source in self._program.sources for word in self.command(source, Path("program"))]
        # Ours by its content: where this checkout is makes no difference.
        digest.update("\0".join([compiler, *commands]).replace(str(_PROGRAM), _PROGRAM.read_text()).encode())
        for path in sorted(self._inputs()):
            digest.update(f"\0{path}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:12]


def load(entry: Path) -> Path | None:
    """An entry of the cache, or None where it is not whole."""
    try:
        manifest = json.loads((entry / _MANIFEST).read_text())
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            return None
        whole = all(_digest(entry / name) == digest for name, digest in manifest["sha256"].items())
    except (OSError, ValueError):
        return None
    return entry if whole else None


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def build(program: Program, kernel: CachedKernel, *, cache: Path | None = None) -> Path:
    """C programs of a kernel's source: from the cache, or built.

    Returns:
        The folder with the programs.

    Raises:
        ProgramError: The kernel's source is not there, or does not compile; it says why.
        KernelBuildError: Its source lacks a part, which is no longer available.
    """
    complete_source(kernel, cache=cache)
    plan = _Build(program, kernel)
    try:
        name = f"{program.name}-{plan.release}-{plan.key()}"
    except OSError as error:
        raise ProgramError(f"{program.name} cannot be built: {error}") from None
    entry = (cache_folder() if cache is None else cache) / "conformance" / name
    with locked(entry.with_name(f".{name}.lock"), Progress(sys.stdout), f"the C programs of {program.name}"):
        if ready := load(entry):
            return ready
        work = entry.with_name(f".{name}.building")
        # Whatever is there was left by one that was killed: this one holds the lock.
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for source, built in zip(program.sources, program.programs, strict=True):
            command = plan.command(source, work / built)
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode:
                raise ProgramError(f"{built} does not compile:\n{done.stderr}")
        manifest = {"format": _FORMAT, "sha256": {built: _digest(work / built) for built in program.programs}}
        (work / _MANIFEST).write_text(json.dumps(manifest) + "\n")
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        work.rename(entry)
    return entry
