"""Rebind plans, on machines that a guest cannot emulate."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyiommufd import ClaimError
from pyiommufd.host import sysfs
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.rebind import plan_rebind
from pyiommufd.host.claims.record import ClaimRecord, ClaimState
from pyiommufd.host.uses import FORCIBLE
from tests.fake_sysfs import FakeSysfs

NAME = "0000:01:00.0"


@pytest.fixture(autouse=True)
def no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RUN", tmp_path / "none")


def words(*names: str) -> list[str]:
    return [str(step) for step in plan_rebind(names).steps]


def test_steps_name_the_drivers_that_announce_the_device(
    fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "modules" / os.uname().release
    folder.mkdir(parents=True)
    (folder / "modules.alias").write_text("alias pci:v00001234d* nouveau\nalias pci:v0000*bc02* nvidia\n")
    monkeypatch.setattr(sysfs, "MODULES", tmp_path / "modules")
    modalias = "pci:v00001234d000011E8sv0sd0bc02sc00i00"
    fake.pci(NAME, driver="vfio-pci", cdev=0, group=7, driver_override="vfio-pci", modalias=modalias)
    assert words(NAME) == [
        f"{NAME}: clear driver_override",
        f"{NAME}: unbind from vfio-pci",
        f"{NAME}: let its host driver take it: nouveau, nvidia",
    ]


def test_device_at_home_and_order(fake: FakeSysfs) -> None:
    fake.pci("0000:00:01.0", group=1, class_code=0x060400)
    fake.pci(NAME, parent="0000:00:01.0", driver="pci-stub", group=7)
    fake.pci("0000:00:00.0", driver="igb", group=2, driver_override="vfio-pci")
    plan = plan_rebind([NAME, "0000:00:00.0", "0000:00:01.0"])
    assert [device.name for device in plan.on_host_driver] == ["0000:00:00.0"]
    assert [str(step) for step in plan.steps] == [
        "0000:00:01.0: let its host driver take it: the one that the kernel chooses",
        f"{NAME}: unbind from pci-stub",
        f"{NAME}: let its host driver take it: the one that the kernel chooses",
    ]
    assert plan_rebind("0000:00:00.0").steps == ()
    with pytest.raises(ValueError, match="no device"):
        plan_rebind([])
    with pytest.raises(ValueError, match="claimed"):
        plan_rebind(NAME, force=["claimed"])


def test_functions_go_with_the_driver_that_made_them(fake: FakeSysfs) -> None:
    folder = fake.pci(NAME, driver="vfio-pci", cdev=0, group=7, sriov_totalvfs="7", sriov_numvfs="1")
    function = fake.pci("0000:01:10.0", group=8)
    (folder / "virtfn0").symlink_to(function)
    (function / "physfn").symlink_to(folder)
    assert words(NAME)[:2] == [f"{NAME}: set sriov_numvfs to 0", f"{NAME}: unbind from vfio-pci"]
    with pytest.raises(ClaimError, match=f"is a virtual function of {NAME}, which would have none"):
        plan_rebind([NAME, "0000:01:10.0"])
    assert len(words("0000:01:10.0")) == 1
    (folder / "sriov_drivers_autoprobe").write_text("0\n")
    with pytest.raises(ClaimError, match=r"echo 1 > .*/0000:01:00\.0/sriov_drivers_autoprobe"):
        plan_rebind("0000:01:10.0")


def test_bus_whose_devices_have_no_other_driver(fake: FakeSysfs) -> None:
    name = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
    folder = fake.root / "devices" / name
    folder.mkdir()
    (fake.root / "bus/mdev/devices").mkdir(parents=True)
    fake.link(f"devices/{name}/subsystem", fake.root / "bus/mdev")
    fake.link(f"bus/mdev/devices/{name}", folder)
    with pytest.raises(ClaimError, match="'mdev' have no other driver"):
        plan_rebind(name)


def test_member_of_a_group_that_is_claimed(fake: FakeSysfs, on_record: Callable[[ClaimRecord], None]) -> None:
    """The claim has left it as it was, on vfio-pci: with it on a host driver the group could not be bound."""
    fake.pci(NAME, driver="vfio-pci", cdev=0, group=7)
    fake.pci("0000:01:00.1", driver="vfio-pci", cdev=1, group=7)
    entry = ClaimRecord.begin([7], ["0000:01:00.1"])
    entry.state = ClaimState.KEPT
    on_record(entry)
    for force in ((), FORCIBLE):
        (refusal,) = plan_rebind(NAME, force=force).refusals
        assert (refusal.device, refusal.kind) == ("0000:01:00.1", "claimed")
        assert refusal.command == "pyiommufd release 0000:01:00.1 gives it back"
