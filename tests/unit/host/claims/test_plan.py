"""Plans of machines that no guest can be."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pytest

from pyiommufd import ClaimError, plan_claim
from pyiommufd.host import sysfs
from pyiommufd.host.claims import journal
from pyiommufd.host.claims import plan as plan_module
from pyiommufd.host.uses import FORCIBLE
from tests.fake_sysfs import FakeSysfs

NAME = "0000:01:00.0"


@pytest.fixture(autouse=True)
def no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RUN", tmp_path / "none")


def test_driver_that_is_not_loaded_is_loaded_first_and_once(fake: FakeSysfs) -> None:
    for function in range(2):
        fake.pci(f"0000:01:00.{function}", driver="snd_hda_intel", group=7)
    plan = plan_claim(NAME)
    assert [str(step) for step in plan.steps] == [
        "0000:01:00.0: load the driver vfio-pci",
        "0000:01:00.0: set driver_override to vfio-pci",
        "0000:01:00.0: unbind from snd_hda_intel",
        "0000:01:00.0: bind to vfio-pci",
        "0000:01:00.1: set driver_override to vfio-pci",
        "0000:01:00.1: unbind from snd_hda_intel",
        "0000:01:00.1: bind to vfio-pci",
    ]
    assert [move.loses for move in plan.moves] == ["snd_hda_intel"] * 2
    (fake.root / "bus/pci/drivers/vfio-pci").mkdir()
    assert "load" not in str(plan_claim(NAME).steps[0])


def test_bridge_on_a_driver_is_left_without_one_after_the_others(fake: FakeSysfs) -> None:
    fake.pci("0000:01:00.0", driver="shpchp", group=7, class_code=0x060400)
    fake.pci("0000:02:01.0", parent="0000:01:00.0", group=7, driver_override="x")
    plan = plan_claim("0000:02:01.0")
    assert [str(step).partition(" ")[2] for step in plan.steps[-3:]] == [
        "set driver_override to vfio-pci",
        "bind to vfio-pci",
        "unbind from shpchp",
    ]
    assert "0000:01:00.0: shpchp -> no driver  (companion)" in str(plan)
    assert plan.undo_commands == (
        "echo 0000:01:00.0 > /sys/bus/pci/drivers/shpchp/bind",
        "echo 0000:02:01.0 > /sys/bus/pci/drivers/vfio-pci/unbind",
        "echo x > /sys/bus/pci/devices/0000:02:01.0/driver_override",
    )


def test_device_that_mediated_devices_are_made_of_is_not_taken(fake: FakeSysfs) -> None:
    folder = fake.pci(NAME, driver="i915", group=7)
    (fake.root / "bus/mdev").mkdir()
    here = folder.relative_to(fake.root)
    (folder / "a-uuid").mkdir()
    fake.link(f"{here}/a-uuid/subsystem", fake.root / "bus/mdev")
    with pytest.raises(ClaimError, match="mediated devices a-uuid"):
        plan_claim(NAME)


def test_kept_claim_is_a_refusal_of_the_plan(fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.pci(NAME, driver="vfio-pci", group=7, cdev=0)
    entry = journal.Entry.begin([7], [NAME])
    entry.state = journal.State.KEPT
    run = tmp_path / "run"
    run.mkdir()
    journal.write(run, entry)
    monkeypatch.setattr(journal, "RUN", run)
    for force in ((), FORCIBLE):
        (refusal,) = plan_claim(NAME, force=force).refusals
        assert (refusal.device, refusal.kind) == (NAME, "claimed")
        assert "pyiommufd release" in refusal.reason


def test_device_that_the_kernel_is_at_is_not_looked_at(
    fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its attributes cannot be read meanwhile: not even root could end a process that tried."""
    fake.pci(NAME, driver="vfio-pci", group=7, cdev=0)
    fake.pci("0000:01:00.1", driver="igb", group=7, sriov_totalvfs="7", sriov_numvfs="0")
    entry = journal.Entry.begin([7], [NAME, "0000:01:00.1"])
    entry.waiting = {"0000:01:00.1": [os.getpid(), journal.start_time(os.getpid()) or 0]}
    run = tmp_path / "run"
    run.mkdir()
    journal.write(run, entry)
    monkeypatch.setattr(journal, "RUN", run)
    looked: list[Path] = []
    monkeypatch.setattr(plan_module, "look", looked.append)
    assert {refusal.kind for refusal in plan_claim(NAME).refusals} == {"claimed"}
    assert looked == []
    entry.waiting = {}
    journal.write(run, entry)
    plan_claim(NAME)
    assert [path.name for path in looked] == ["0000:01:00.1"]


@pytest.mark.parametrize("force", ["claimed", ("mounted", "claimed"), ["everything"], {"Mounted"}])
def test_what_cannot_be_forced_is_named(fake: FakeSysfs, force: Collection[str]) -> None:
    fake.pci(NAME, driver="vfio-pci", group=7, cdev=0)
    with pytest.raises(ValueError, match=r"force names (claimed|everything|Mounted); what can be forced is root, "):
        plan_claim(NAME, force=force)


@pytest.fixture
def variants(fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    """A function that a variant driver announces, one that none does, both in a group, and the drivers there."""
    folder = tmp_path / "modules" / os.uname().release
    folder.mkdir(parents=True)
    (folder / "modules.alias").write_text("alias vfio_pci:v00001234d*sv*sd*bc*sc*i* own_vfio_pci\n")
    monkeypatch.setattr(sysfs, "MODULES", tmp_path / "modules")
    for driver in ("vfio-pci", "own_vfio_pci", "igb"):
        (fake.root / "bus/pci/drivers" / driver).mkdir()
    for function in range(2):
        fake.pci(f"0000:01:00.{function}", driver="igb", group=7, modalias="pci:v00001234d000011E8sv0sd0bc02sc00i00")
    return fake


def test_driver_that_is_named_is_for_the_devices_that_are(variants: FakeSysfs) -> None:
    def moves(driver: str | None) -> list[str | None]:
        return [move.driver for move in plan_claim(NAME, driver=driver).moves]

    assert moves(None) == ["own_vfio_pci", "own_vfio_pci"]
    assert moves("vfio-pci") == moves("vfio_pci") == ["vfio-pci", "own_vfio_pci"]
    assert moves("own-vfio-pci") == ["own_vfio_pci", "own_vfio_pci"]
    assert plan_claim(NAME, driver="vfio_pci").driver == "vfio_pci"
    with pytest.raises(ClaimError, match="igb is no vfio driver"):
        plan_claim(NAME, driver="igb")
    with pytest.raises(ClaimError, match="there is no driver nothing here"):
        plan_claim(NAME, driver="nothing")
    with pytest.raises(TypeError):
        plan_claim(NAME, driver=5)  # type: ignore[arg-type]


def test_device_on_another_vfio_driver_moves_to_the_one_that_is_named(variants: FakeSysfs) -> None:
    name = "0000:02:00.0"
    variants.pci(name, driver="own_vfio_pci", group=8, cdev=0, driver_override="own_vfio_pci")
    for driver in (None, "own_vfio_pci"):
        assert plan_claim(name, driver=driver).steps == ()
    plan = plan_claim(name, driver="vfio-pci")
    assert [str(step).partition(": ")[2] for step in plan.steps] == [
        "set driver_override to vfio-pci",
        "unbind from own_vfio_pci",
        "bind to vfio-pci",
    ]
    assert plan.undo_commands[1:] == (
        f"echo own_vfio_pci > /sys/bus/pci/devices/{name}/driver_override",
        f"echo {name} > /sys/bus/pci/drivers/own_vfio_pci/bind",
    )
