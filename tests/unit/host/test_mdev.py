"""Mediated devices as sysfs shows them, and what is refused before anything is written."""

from __future__ import annotations

import errno
from pathlib import Path
from uuid import UUID

import pytest

from pyiommufd import DeviceNotFoundError, HostDevice, IoctlError, NotFoundError, find_device, list_devices, plan_claim
from pyiommufd.errors import ClaimError
from pyiommufd.host.checks.bindable import bind_refusals
from pyiommufd.host.mdev import check_mdev, mdev_refusals, mdev_type, mdev_types, new_uuid, remove_mdev
from tests.fake_sysfs import FakeSysfs

GPU = "0000:00:02.0"
ONE, OTHER = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002"


@pytest.fixture
def gpu(fake: FakeSysfs) -> Path:
    """A card whose driver makes mediated devices of two types; there is one of the first."""
    folder = fake.pci(GPU, driver="i915", group=1)
    first = fake.mdev_type(folder, "i915-GVTg_V5_4", 3, description="resolution: 1920x1200\nweight: 4")
    fake.mdev_type(folder, "i915-GVTg_V5_8", 0)
    fake.mdev(first, ONE, group=7)
    return folder


def test_types(gpu: Path) -> None:
    first, second = mdev_types()
    assert (first.id, first.available, first.device_api) == ("i915-GVTg_V5_4", 3, "vfio-pci")
    assert first.description == "resolution: 1920x1200\nweight: 4"
    assert first.parent == find_device(GPU)
    assert first.devices == (find_device(ONE),)
    assert mdev_type(first.devices[0]) == first
    assert mdev_type(first.parent) is None
    assert (second.id, second.available, second.devices) == ("i915-GVTg_V5_8", 0, ())
    assert repr(first) == f"<MdevType i915-GVTg_V5_4 of {GPU}: 1, and 3 available>"


def test_ways_to_name_a_parent(gpu: Path, fake: FakeSysfs) -> None:
    # mtty's parent is no device that can be found.
    virtual = fake.device("mtty", "mtty", group=None, parent=fake.root / "devices/virtual/mtty")
    fake.mdev_type(virtual, "mtty-1")
    assert [kind.id for kind in mdev_types()] == ["i915-GVTg_V5_4", "i915-GVTg_V5_8", "mtty-1"]
    names: tuple[HostDevice | str | Path, ...] = (
        GPU,
        "00:02.0",
        str(gpu),
        str(fake.root / "class/mdev_bus" / GPU),
        find_device(GPU),
    )
    for name in names:
        assert [kind.id for kind in mdev_types(name)] == ["i915-GVTg_V5_4", "i915-GVTg_V5_8"]
    names = ("mtty", str(virtual), virtual, str(fake.root / "class/mdev_bus/mtty"), mdev_types("mtty")[0].parent)
    for name in names:
        assert [kind.id for kind in mdev_types(name)] == ["mtty-1"]
    with pytest.raises(DeviceNotFoundError, match=f"no parent mdpy; those of mediated devices: {GPU}, mtty"):
        mdev_types("mdpy")
    with pytest.raises(TypeError):
        mdev_types(3)  # type: ignore[arg-type]


def test_machine_without_parents(fake: FakeSysfs) -> None:
    assert mdev_types() == ()
    with pytest.raises(NotFoundError, match="no driver here makes mediated devices") as caught:
        check_mdev(GPU, "i915-GVTg_V5_4")
    assert (caught.value.request, caught.value.errno) == ("open", errno.ENOENT)


def test_refused_before_it_is_tried(gpu: Path) -> None:
    assert check_mdev(GPU, "i915-GVTg_V5_4", OTHER).available == 3
    with pytest.raises(IoctlError, match="of this UUID") as caught:
        check_mdev(GPU, "i915-GVTg_V5_4", UUID(ONE))
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(IoctlError, match="no room") as caught:
        check_mdev(GPU, "i915-GVTg_V5_8")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(DeviceNotFoundError, match=r"no type 'i915-GVTg_V5_5'.*did you mean"):
        check_mdev(GPU, "i915-GVTg_V5_5")


@pytest.mark.parametrize(("given", "error"), [("x", ValueError), (1, TypeError)])
def test_no_uuid(given: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{given!r} is not a UUID" if error is ValueError else "not int"):
        new_uuid(given)
    with pytest.raises(TypeError, match=r"named by its id, a str .*, not by int"):
        check_mdev("mtty", 3)  # type: ignore[arg-type]


def test_new_uuids_differ() -> None:
    assert new_uuid(None) != new_uuid(None)
    assert str(new_uuid(ONE.upper())) == ONE


def test_what_is_no_mediated_device_is_not_removed(gpu: Path) -> None:
    assert mdev_refusals(ONE) == ()
    for refused in (mdev_refusals, remove_mdev):
        with pytest.raises(DeviceNotFoundError, match="a device of the bus pci, and no mediated one"):
            refused(GPU)
    with pytest.raises(ValueError, match="force names"):
        mdev_refusals(ONE, force=["nothing"])


@pytest.mark.parametrize("group", [7, None])
def test_found_with_a_group_and_without(fake: FakeSysfs, group: int | None) -> None:
    """A kernel without CONFIG_VFIO_GROUP gives it none."""
    parent = fake.pci(GPU, driver="i915", group=1)
    fake.mdev(fake.mdev_type(parent, "i915-GVTg_V5_4"), ONE, group=group, cdev=3)
    device = find_device(ONE)
    assert device.is_mediated
    assert not find_device(GPU).is_mediated
    assert device in list_devices()
    for name in ("vfio3", "/dev/vfio/devices/vfio3", str(device.sys_path)):
        assert find_device(name) == device
    # No IOMMU is before it, so that nothing that one lacks stands in the way.
    assert list(bind_refusals([device])) == []
    plan = plan_claim(device)
    assert (plan.steps, plan.refusals) == ((), ())


def test_its_parent_is_not_claimed(gpu: Path) -> None:
    with pytest.raises(ClaimError, match=f"mediated devices {ONE}.*remove_mdev") as caught:
        plan_claim(GPU)
    assert "pyiommufd mdev remove" in caught.value.for_command()
