"""Virtual functions as sysfs shows them, and the steps to another number of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd import ClaimError, DeviceNotFoundError, find_device
from pyiommufd.host.claims.vfs import vfs_steps
from pyiommufd.host.discovery.vfs import VFs, vfs_of
from tests.fake_sysfs import FakeSysfs

NAME = "0000:01:00.0"


@pytest.fixture
def folder(fake: FakeSysfs) -> Path:
    """A physical function with three virtual ones of eleven."""
    folder = fake.pci(NAME, driver="igb", sriov_numvfs="3", sriov_totalvfs="11", sriov_drivers_autoprobe="1")
    for number in range(3):
        function = fake.pci(f"0000:01:10.{number}", driver="igbvf")
        (folder / f"virtfn{2 - number}").symlink_to(function)
        (function / "physfn").symlink_to(folder)
    (folder / "virtfn_other").touch()
    return folder


def test_functions_in_the_order_of_their_numbers(folder: Path) -> None:
    found = vfs_of(NAME)
    assert (found.total, found.count) == (11, 3)
    assert [device.name for device in found.devices] == ["0000:01:10.2", "0000:01:10.1", "0000:01:10.0"]
    assert found == vfs_of(find_device(NAME))


def test_from_one_to_the_other(folder: Path) -> None:
    physical = find_device(NAME)
    assert physical.physical_function is None
    functions = physical.virtual_functions
    assert functions == vfs_of(NAME).devices
    assert [function.physical_function for function in functions] == [physical] * 3
    assert functions[0].virtual_functions == ()
    (folder / "virtfn0").unlink()
    assert physical.virtual_functions == functions[1:]  # afresh
    assert vfs_of(NAME).count == 2


@pytest.mark.parametrize(("count", "error"), [("3", TypeError), (True, TypeError), (2.0, TypeError), (-1, ValueError)])
def test_what_is_no_number_of_functions(folder: Path, count: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        vfs_steps(NAME, count)  # type: ignore[arg-type]


def test_device_without_sriov(fake: FakeSysfs) -> None:
    fake.pci(NAME)
    assert vfs_of(NAME) == VFs(0, 0, ())
    with pytest.raises(ClaimError, match="no SR-IOV"):
        vfs_steps(NAME, 1)
    assert vfs_steps(NAME, 0) == ()


@pytest.mark.parametrize(
    ("now", "count", "values"), [(3, 3, []), (3, 0, ["0"]), (3, 5, ["0", "5"]), (0, 2, ["2"]), (0, 0, [])]
)
def test_steps(folder: Path, now: int, count: int, values: list[str]) -> None:
    for link in sorted(folder.glob("virtfn[0-9]"))[now:]:
        link.unlink()
    assert [step.value for step in vfs_steps(NAME, count)] == values


def test_numbers_that_cannot_be(folder: Path) -> None:
    with pytest.raises(ClaimError, match="11 virtual functions at most"):
        vfs_steps(NAME, 12)
    with pytest.raises(ValueError, match="-1"):
        vfs_steps(NAME, -1)
    with pytest.raises(DeviceNotFoundError):
        vfs_steps("0000:09:00.0", 1)
