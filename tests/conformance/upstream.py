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

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.kernels import CachedKernel, cache_folder
from pyiommufd.testing.locked import locked
from pyiommufd.testing.progress import Progress

SELFTESTS = Path("tools/testing/selftests")
_MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class Program:
    """A C program of the kernel's tests, and where its twins are.

    Attributes:
        name: As the report calls it.
        folder: Its folder, below the source's `SELFTESTS`.
        sources: Its files there.
        libraries: What it is linked with.
        twins: The folder with the twins.
        huge_pages: How many huge pages of 2 MiB it wants reserved.
    """

    name: str
    folder: str
    sources: tuple[str, ...]
    libraries: tuple[str, ...]
    twins: str
    huge_pages: int = 0


PROGRAMS = (Program("iommufd", "iommu", ("iommufd.c",), ("cap",), "tests/conformance/iommufd", huge_pages=64),)


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
    """How a program is built from a kernel's files."""

    def __init__(self, program: Program, kernel: CachedKernel) -> None:
        self._program = program
        self._root = kernel.folder / "source"
        self._headers = kernel.folder / "headers" / "include"
        self.release = kernel.release

    def command(self, target: Path) -> list[str]:
        """As the kernel's lib.mk and the folder's Makefile have it."""
        folder = self._root / SELFTESTS / self._program.folder
        return [
            *("gcc", "-Wall", "-O2", "-Wno-unused-function", "-D_GNU_SOURCE="),
            *("-isystem", str(self._headers), f"-I{self._root / SELFTESTS}", "-o", str(target)),
            *(str(folder / source) for source in self._program.sources),
            *(f"-l{library}" for library in self._program.libraries),
        ]

    def _inputs(self) -> Iterator[Path]:
        """What it is made from, but for the compiler's and the C library's own."""
        selftests = self._root / SELFTESTS
        yield from selftests.glob("kselftest*.h")
        yield from (selftests / self._program.folder).rglob("*.[ch]")
        yield self._root / "drivers/iommu/iommufd/iommufd_test.h"
        for folder in ("linux", "asm", "asm-generic"):
            yield from (self._headers / folder).rglob("*.h")

    def key(self) -> str:
        """What names the entry in the cache: the same for the same files, flags and compiler."""
        digest = hashlib.sha256()
        compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
        digest.update("\0".join([compiler, *self.command(Path("program"))]).encode())
        for path in sorted(self._inputs()):
            digest.update(f"\0{path}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:12]


def load(entry: Path) -> Path | None:
    """The program in an entry of the cache, or None where there is none that is whole."""
    program = entry / "program"
    try:
        manifest = json.loads((entry / _MANIFEST).read_text())
        digest = hashlib.sha256(program.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        return None
    return program if manifest.get("sha256") == digest else None


def build(program: Program, kernel: CachedKernel, *, cache: Path | None = None) -> Path:
    """A C program of a kernel's source: from the cache, or built.

    Raises:
        ProgramError: The kernel's source is not there, or does not compile; it says why.
    """
    plan = _Build(program, kernel)
    try:
        name = f"{program.name}-{plan.release}-{plan.key()}"
    except OSError as error:
        raise ProgramError(f"{program.name} cannot be built: {error}") from None
    entry = (cache_folder() if cache is None else cache) / "conformance" / name
    with locked(entry.with_name(f".{name}.lock"), Progress(sys.stdout), f"the C program {program.name}"):
        if ready := load(entry):
            return ready
        work = entry.with_name(f".{name}.building")
        # Whatever is there was left by one that was killed: this one holds the lock.
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        target = work / "program"
        done = subprocess.run(plan.command(target), capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise ProgramError(f"{program.name} does not compile:\n{done.stderr}")
        manifest = {"format": _FORMAT, "sha256": hashlib.sha256(target.read_bytes()).hexdigest()}
        (work / _MANIFEST).write_text(json.dumps(manifest) + "\n")
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        work.rename(entry)
    return entry / "program"
