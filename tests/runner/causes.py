"""The table of causes: each cause of BIND, ATTACH, MAP and FEATURE that a guest can produce, on each kernel.

Prints it as Markdown, after running guests of each kernel that is here.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyiommufd import Cause, IoctlError
from pyiommufd.testing import Guest
from pyiommufd.testing.guest.machine import DEFAULT_DEVICES, Edu, RawDevice
from pyiommufd.testing.provision.kernels import cache_folder, cached_kernels
from tests.guest_pytest import ENVIRONMENT, PYTEST
from tests.patience import patience

FOLDER = "tests/guest/diagnose"
_NUMBER = re.compile(r"<(\w+) \d+>|\b(fd) \d+")
_CODE = re.compile(
    r"echo \d > \S+|pyiommufd(?: \w+| --\w+)+|ulimit -l|[\w.]+\([^()]*\)(?:\.\w+\(\))?|[A-Z]\w+\.\w+|\b\w+=\w*"
)
_ORDER = (
    "VFIO_DEVICE_BIND_IOMMUFD",
    "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
    "IOMMU_IOAS_MAP",
    "IOMMU_IOAS_MAP_FILE",
    "VFIO_DEVICE_FEATURE",
)


@dataclass(slots=True)
class CauseRow:
    """A row of the table.

    Attributes:
        kernel: The kernel's release.
        ioctl: The refused request.
        errno: What the kernel answered, by name.
        cause: What was made to be in the way.
        produced: Whether the kernel refused, with this errno.
        named_first: Whether the cause was named first.
        fix_works: Whether the kernel accepted the same request after the stated fix.
        fix: What the first cause says to do.
        lacks: Why this kernel cannot be asked, where it cannot.
    """

    kernel: str
    ioctl: str
    errno: str
    cause: str
    produced: bool = False
    named_first: bool = False
    fix_works: bool = False
    fix: str = ""
    lacks: str = ""

    @property
    def as_expected(self) -> bool:
        """Whether everything came out as it should, or this kernel cannot be asked."""
        return bool(self.lacks) or (self.produced and self.named_first and self.fix_works)

    @property
    def exception(self) -> str:
        """What was not as it is on the other kernels, in words; empty where nothing was."""
        if self.lacks:
            return f"not on {self.kernel}, which has {self.lacks}"
        failed = {"refused": self.produced, "named first": self.named_first, "mended": self.fix_works}
        missing = [f"NOT {word}" for word, came_out in failed.items() if not came_out]
        return f"on {self.kernel} {', '.join(missing)}" if missing else ""


class Prover:
    """Shows that a refusal names its cause first, and that what it says to do makes the kernel accept the same.

    Attributes:
        table: The rows so far.
    """

    def __init__(self, table: list[CauseRow]) -> None:
        self.table = table

    def __call__(
        self,
        name: str,
        ioctl: str,
        code: int,
        attempt: Callable[[], object],
        fix: Callable[[Cause], Callable[[], object] | None],
        *,
        cause: str,
        says: str,
    ) -> CauseRow:
        """Produce a refusal, and do what its fix says.

        Args:
            name: The cause, for the table.
            ioctl: The request that is refused.
            code: The errno.
            attempt: Issues it.
            fix: Does what the cause says; returns how the request is issued then, where that is not the same way.
            cause: A text in the first cause's summary.
            says: A text in its fix.
        """
        row = CauseRow(os.uname().release, ioctl, errno.errorcode[code], name)
        self.table.append(row)
        with pytest.raises(IoctlError) as caught:
            attempt()
        error = caught.value
        assert (error.request, errno.errorcode[error.errno or 0]) == (ioctl, row.errno), error
        row.produced = True
        first = error.causes[0]
        assert cause in first.summary, error
        row.named_first = True
        row.fix = first.fix
        assert says in first.fix, first
        again = fix(first)
        (attempt if again is None else again)()
        row.fix_works = True
        return row

    def lacks(self, name: str, ioctl: str, code: int, reason: str) -> None:
        """Note that this kernel cannot be asked, and skip."""
        self.table.append(CauseRow(os.uname().release, ioctl, errno.errorcode[code], name, lacks=reason))
        pytest.skip(reason)

    def add(self, row: CauseRow) -> None:
        """Note what a child has proved."""
        self.table.append(row)
        assert row.as_expected, row


def lines(rows: Iterable[CauseRow]) -> list[str]:
    """The tables as Markdown, one for each ioctl, a row a cause, after what all kernels showed."""
    rows = list(rows)
    kernels = list(dict.fromkeys(row.kernel for row in rows))
    by_cause: dict[tuple[str, str, str], dict[str, CauseRow]] = {}
    for row in rows:
        by_cause.setdefault((row.ioctl, row.errno, row.cause), {})[row.kernel] = row
    result = [
        f"On Linux {' and '.join(kernels)} each was refused, with this cause named first, and accepted after the fix,",
        "except where a row says so.",
    ]
    ioctl = None
    for (request, code, cause), found in sorted(by_cause.items(), key=lambda item: _ORDER.index(item[0][0])):
        notes = [found[kernel].exception if kernel in found else f"not run on {kernel}" for kernel in kernels]
        fix = next((row.fix for row in found.values() if row.fix), "")
        if request != ioctl:
            result += ["", f"## `{request}`", "", "| errno | cause | what mends it |", "|---|---|---|"]
            ioctl = request
        result.append(f"| {code} | {'; '.join([cause, *filter(None, notes)])} | {as_markdown(fix)} |")
    return result


def as_markdown(fix: str) -> str:
    """A fix for the table: code as code, and without the numbers that differ from run to run."""
    return _CODE.sub(r"`\g<0>`", _NUMBER.sub(lambda number: f"{number[1] or number[2]} N", fix))


@dataclass(frozen=True)
class Machine:
    """A guest that some of the causes need.

    Attributes:
        file: The tests for it.
        iommu: As `pyiommufd guest --iommu` takes it.
        devices: Its devices.
        qemu_arguments: More for QEMU.
        kernel_arguments: More for the kernel's command line.
    """

    file: str
    iommu: str
    devices: tuple[object, ...]
    qemu_arguments: tuple[str, ...] = ()
    kernel_arguments: tuple[str, ...] = ()


MACHINES = (
    Machine("test_causes.py", "intel", DEFAULT_DEVICES),
    # Without ACPI's hot-plug the kernel puts the PCIe-to-PCI bridge on shpchp.
    Machine(
        "test_bridge_cause.py", "intel", DEFAULT_DEVICES,
        qemu_arguments=("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"),
    ),
    # As VT-d without interrupt remapping: not what `iommu="intel"` gives.
    Machine(
        "test_interrupt_cause.py", "none", (RawDevice("intel-iommu,intremap=off,aw-bits=48"), Edu()),
        kernel_arguments=("intel_iommu=on",),
    ),
)  # fmt: skip


def run_machine(machine: Machine, kernel: Path, folder: Path) -> tuple[list[CauseRow], str, int]:
    """Run the tests of one machine on one kernel: their rows, pytest's output and its exit status."""
    with Guest(
        iommu=machine.iommu,
        devices=machine.devices,  # type: ignore[arg-type]
        kernel=kernel,
        results=folder,
        qemu_arguments=machine.qemu_arguments,
        kernel_arguments=machine.kernel_arguments,
    ) as guest:
        result = guest.run([*PYTEST, "-q", f"{FOLDER}/{machine.file}"], env=ENVIRONMENT, timeout=patience(600))
    report = folder / "causes.json"
    rows = [CauseRow(**row) for row in json.loads(report.read_text())] if report.exists() else []
    return rows, (result.stdout + result.stderr).decode(errors="replace"), result.returncode


def main(machines: Sequence[Machine] = MACHINES) -> int:
    """Print the table of all machines on all kernels in the cache; 0 if all of it is as it should be."""
    rows: list[CauseRow] = []
    failed = False
    for kernel in reversed(cached_kernels(cache_folder())):
        for machine in machines:
            with tempfile.TemporaryDirectory() as folder:
                found, output, status = run_machine(machine, kernel.folder / "bzImage", Path(folder))
            rows += found
            if status or not found or not all(row.as_expected for row in found):
                failed = True
                print(output)
    print("\n".join(lines(rows)))
    return int(failed)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m tests.runner.causes", description=__doc__).parse_args()
    sys.exit(main())
