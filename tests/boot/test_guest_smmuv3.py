"""Guests with Arm's IOMMU: an aarch64 machine, emulated here, with this Python environment on an arm64 root."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyiommufd
from pyiommufd.testing import Edu, Guest, GuestMissingError
from pyiommufd.testing.guest import iort
from pyiommufd.testing.guest.foreign import find_system
from pyiommufd.testing.guest.qemu import find_qemu
from pyiommufd.testing.provision.architecture import AARCH64
from pyiommufd.testing.provision.kernels import cache_folder, find_kernel
from tests.boot.plugin_project import Project
from tests.patience import patience


def unprovided() -> str | None:
    """What of such guests is missing here."""
    try:
        find_qemu(architecture=AARCH64)
        find_kernel(architecture=AARCH64)
        find_system(AARCH64)
    except GuestMissingError as error:
        return str(error)
    return None


@pytest.fixture(scope="module", autouse=True)
def provided() -> None:
    if missing := unprovided():
        pytest.skip(missing)


pytestmark = pytest.mark.boots

DMA = """
from pyiommufd import DMABuffer, IOMMUFD, find_device, plan_claim
from pyiommufd.testing.edu import EduDriver

with plan_claim("00:01.0").apply(), IOMMUFD() as iommufd:
    device = iommufd.bind(find_device("00:01.0"))
    ioas = iommufd.alloc_ioas()
    buffer = DMABuffer(4096)
    ioas.map(buffer, iova=0x100000)
    device.attach(ioas)
    device.bus_master = True
    with EduDriver(device) as edu:
        buffer[:5] = b"there"
        edu.copy_in(0x100000, 5)
        edu.copy_out(0x100800, 5)
    print(bytes(buffer[0x800:0x805]).decode(), device.hw_info().type.name)
"""

VIOMMU = """
from pyiommufd import IOMMUFD, find_device, plan_claim, uapi
from pyiommufd.uapi import raw

with plan_claim("00:01.0").apply(), IOMMUFD() as iommufd:
    device = iommufd.bind(find_device("00:01.0"))
    parent = device.alloc_hwpt(iommufd.alloc_ioas(), nest_parent=True)
    viommu = raw.struct(
        "iommu_viommu_alloc", type=uapi.IOMMU_VIOMMU_TYPE_ARM_SMMUV3, dev_id=device.id, hwpt_id=parent.id
    )
    try:
        raw.ioctl(iommufd.fileno(), uapi.IOMMU_VIOMMU_ALLOC, viommu)
    except OSError as error:
        print(error.errno)
    else:
        raw.ioctl(iommufd.fileno(), uapi.IOMMU_DESTROY, raw.struct("iommu_destroy", id=viommu.out_viommu_id))
        print("allocated")
"""

EOPNOTSUPP = 95


def python(guest: Guest, code: str) -> str:
    """What a program prints in the guest."""
    result = guest.run([sys.executable, "-c", code], timeout=patience())
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode().strip()


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(iommu="smmuv3") as guest:
        yield guest


def test_the_environment_is_this_one_on_another_architecture(guest: Guest) -> None:
    code = "import os, sys, pyiommufd; print(os.uname().machine, sys.executable, sys.prefix, pyiommufd.__file__)"
    assert python(guest, code).split() == ["aarch64", sys.executable, sys.prefix, pyiommufd.__file__]


def test_commands_and_programs_of_the_environment_run(guest: Guest) -> None:
    listed = guest.run(["pyiommufd", "list", "--json"], timeout=patience(), check=True)
    assert [device["name"] for device in json.loads(listed.stdout) if device["iommu"]]
    # A program finds Python by its name, and by what Python says of itself.
    run = "subprocess.run([each, '-c', 'print(1)'], check=True)"
    code = f"import subprocess, sys; [{run} for each in ('python', sys.executable)]"
    assert python(guest, code).split() == ["1", "1"]


def test_data_goes_through_the_iommu(guest: Guest) -> None:
    assert python(guest, DMA) == "there ARM_SMMUV3"


def test_plain_the_kernel_has_nesting_parents_and_no_virtual_iommus(guest: Guest) -> None:
    assert python(guest, VIOMMU) == str(EOPNOTSUPP)


def test_nested_the_kernel_has_virtual_iommus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first boot of a machine reads its table; the next finds it, and makes it anew where it is of another one."""
    for part in ("kernels", "qemu", "roots", "extensions", "packages"):
        (tmp_path / "pyiommufd" / part).parent.mkdir(exist_ok=True)
        (tmp_path / "pyiommufd" / part).symlink_to(cache_folder() / part)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Guest(iommu="smmuv3-nested", devices=[Edu()]) as guest:
        assert python(guest, VIOMMU) == "allocated"
        table = guest.get(iort.PLACE)
    (kept,) = (tmp_path / "pyiommufd/iort").iterdir()
    assert kept.read_bytes() == table
    # A kernel dies of a table that is not its machine's: here of one whose SMMU is where nothing is.
    wrong = table.replace((0x0905_0000).to_bytes(8, "little"), (0x0905_0100).to_bytes(8, "little"))
    wrong = wrong[:9] + bytes([(wrong[9] - sum(wrong)) & 0xFF]) + wrong[10:]
    assert wrong != table
    kept.write_bytes(wrong)
    with Guest(iommu="smmuv3-nested", devices=[Edu()]) as guest:
        assert guest.get(iort.PLACE) == table
    assert kept.read_bytes() == table


def test_pytest_runs_marked_tests_in_such_guests(project: Project) -> None:
    project.write(
        test_arm__py="""\
        import os

        import hypothesis
        import pytest

        @pytest.mark.guest(iommu="smmuv3")
        @hypothesis.given(hypothesis.strategies.integers())
        def test_it(number):
            assert os.uname().machine == "aarch64"
        """
    )
    result = project.pytest("--guest")
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout
