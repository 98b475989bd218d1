"""Claim plans, on machines that a guest cannot emulate."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from pyiommufd import ClaimError, find_device, list_devices, plan_claim
from pyiommufd.host import sysfs
from pyiommufd.host.claims import journal
from pyiommufd.host.claims import plan as plan_module
from pyiommufd.host.claims.record import ClaimRecord, ClaimState, start_time
from pyiommufd.host.overview.standing import Standing, standings
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


def test_kept_claim_is_a_refusal_of_the_plan(fake: FakeSysfs, on_record: Callable[[ClaimRecord], None]) -> None:
    fake.pci(NAME, driver="vfio-pci", group=7, cdev=0)
    entry = ClaimRecord.begin([7], [NAME])
    entry.state = ClaimState.KEPT
    on_record(entry)
    for force in ((), FORCIBLE):
        (refusal,) = plan_claim(NAME, force=force).refusals
        assert (refusal.device, refusal.kind) == (NAME, "claimed")
        assert refusal.command == f"pyiommufd release {NAME} gives it back"
        assert refusal.fix == f"release(['{NAME}']) gives it back"


def test_device_that_the_kernel_is_at_is_not_looked_at(
    fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch, on_record: Callable[[ClaimRecord], None]
) -> None:
    """Its attributes cannot be read meanwhile: not even root could end a process that tried."""
    fake.pci(NAME, driver="vfio-pci", group=7, cdev=0)
    fake.pci("0000:01:00.1", driver="igb", group=7, sriov_totalvfs="7", sriov_numvfs="0")
    entry = ClaimRecord.begin([7], [NAME, "0000:01:00.1"])
    entry.waiting = {"0000:01:00.1": [os.getpid(), start_time(os.getpid()) or 0]}
    on_record(entry)
    looked: list[Path] = []
    monkeypatch.setattr(plan_module, "device_state", looked.append)
    assert {refusal.kind for refusal in plan_claim(NAME).refusals} == {"claimed"}
    assert looked == []
    entry.waiting = {}
    on_record(entry)
    plan_claim(NAME)
    assert [path.name for path in looked] == ["0000:01:00.1"]


@pytest.mark.parametrize("force", [["claimed"], ("mounted", "claimed"), ["everything"], {"Mounted"}])
def test_what_cannot_be_forced_is_named(fake: FakeSysfs, force: Collection[str]) -> None:
    fake.pci(NAME, driver="vfio-pci", group=7, cdev=0)
    with pytest.raises(ValueError, match=r"force names (claimed|everything|Mounted); what can be forced is root, "):
        plan_claim(NAME, force=force)


@pytest.mark.parametrize(("class_code", "kind"), [(0x060100, "an LPC controller"), (0x068000, "an NVSwitch")])
def test_what_has_the_class_of_a_bridge_and_is_none_is_claimed(fake: FakeSysfs, class_code: int, kind: str) -> None:
    fake.pci(NAME, driver="x", group=7, class_code=class_code)
    fake.pci("0000:01:00.1", driver="ahci", group=7)
    for name in (NAME, "0000:01:00.1"):
        moves = plan_claim(name).moves
        assert [(move.device.name[-1], move.driver) for move in moves] == [("0", "vfio-pci"), ("1", "vfio-pci")], kind


def test_what_has_the_header_of_a_bridge_is_one(fake: FakeSysfs) -> None:
    fake.pci(NAME, driver="x", group=7, class_code=0x088000, bridge=True)
    fake.pci("0000:02:00.0", parent=NAME, driver="ahci", group=7)
    with pytest.raises(ClaimError, match=f"{NAME} is a bridge"):
        plan_claim(NAME)
    plan = plan_claim("0000:02:00.0")
    assert [(move.device.name, move.driver) for move in plan.moves] == [("0000:02:00.0", "vfio-pci"), (NAME, None)]
    # What is behind a bridge stays when that loses its driver.
    assert plan.moves[1].gone == ()


@pytest.mark.parametrize(("driver", "stays"), [(None, True), ("k10temp", False)])
def test_host_bridge_that_nobody_named_and_nothing_drives_stays(
    fake: FakeSysfs, driver: str | None, stays: bool
) -> None:
    fake.pci("0000:00:18.0", driver=driver, group=7, class_code=0x060000)
    fake.pci(NAME, group=7)
    plan = plan_claim(NAME)
    assert [device.name for device in plan.stays] == (["0000:00:18.0"] if stays else [])
    assert [device.name for device in plan.endpoints] == ([NAME] if stays else ["0000:00:18.0", NAME])
    assert [move.device.name for move in plan_claim("0000:00:18.0").moves] == ["0000:00:18.0", NAME]


def test_what_is_behind_vmd_goes_with_it(fake: FakeSysfs) -> None:
    fake.vmd()
    (fake.root / "bus/pci/drivers/vfio-pci").mkdir()
    plan = plan_claim("0000:00:0e.0")
    assert list(plan.outline) == [
        "group 7:",
        "  0000:00:0e.0: vmd -> vfio-pci",
        "    10000:00:01.0: pcieport -> gone, with its parent 0000:00:0e.0  (companion)",
        "    10000:01:00.0: nvme -> gone, with its parent 0000:00:0e.0  (companion)",
    ]
    assert {step.target for step in plan.steps} == {"0000:00:0e.0"}
    assert plan.undo_commands == (
        "echo 0000:00:0e.0 > /sys/bus/pci/drivers/vfio-pci/unbind",
        "echo > /sys/bus/pci/devices/0000:00:0e.0/driver_override",
        "echo 0000:00:0e.0 > /sys/bus/pci/drivers/vmd/bind",
    )
    assert [device.name for device in plan.companions] == ["10000:00:01.0", "10000:01:00.0"]
    assert plan.stays == ()
    assert plan._names == {"0000:00:0e.0", "10000:00:01.0", "10000:01:00.0"}
    assert [device.name for device in plan.endpoints] == ["0000:00:0e.0"]


def test_claim_of_what_is_behind_vmd_is_in_the_way(fake: FakeSysfs, on_record: Callable[[ClaimRecord], None]) -> None:
    fake.vmd()
    on_record(ClaimRecord.begin([7], ["10000:01:00.0"]))
    refusals = plan_claim("0000:00:0e.0").refusals
    assert [(refusal.device, refusal.kind) for refusal in refusals] == [("10000:01:00.0", "claimed")]


@pytest.mark.parametrize("names", [("10000:01:00.0",), ("10000:00:01.0",), ("0000:00:0e.0", "10000:01:00.0")])
def test_what_is_behind_vmd_cannot_be_claimed_itself(fake: FakeSysfs, names: tuple[str, ...]) -> None:
    fake.vmd()
    with pytest.raises(ClaimError, match=rf"{names[-1]} goes away with 0000:00:0e.0, .*claim 0000:00:0e.0"):
        plan_claim(names)


def test_vmd_that_something_else_has_keeps_to_itself(fake: FakeSysfs) -> None:
    """Another member of its group is claimed, and it has no driver that had made anything."""
    fake.vmd(driver=None)
    fake.pci(NAME, group=7)
    assert [move.device.name for move in plan_claim(NAME).moves] == ["0000:00:0e.0", NAME]


def test_virtual_functions_of_what_goes_are_gone_once(fake: FakeSysfs) -> None:
    fake.vmd()
    drive = find_device("10000:01:00.0").sys_path
    fake.file(str((drive / "sriov_totalvfs").relative_to(fake.root)), "2")
    function = fake.pci("10000:01:00.1", parent="10000:00:01.0", group=7)
    fake.link(str((drive / "virtfn0").relative_to(fake.root)), function)
    plan = plan_claim("0000:00:0e.0")
    assert [device.name for device in plan.moves[0].gone] == ["10000:00:01.0", "10000:01:00.0", "10000:01:00.1"]
    assert len(plan.moves) == 1


def test_virtual_function_in_the_group_of_its_physical_one_has_one_line(fake: FakeSysfs) -> None:
    physical = fake.pci(NAME, driver="igb", group=7, sriov_totalvfs="1", sriov_numvfs="1")
    fake.link(str((physical / "virtfn0").relative_to(fake.root)), fake.pci("0000:01:10.0", driver="igbvf", group=7))
    assert list(plan_claim(NAME).outline) == [
        "group 7:",
        f"  {NAME}: igb -> vfio-pci",
        "    0000:01:10.0: igbvf -> gone, with its physical function  (companion)",
    ]


def test_what_goes_with_a_device_of_another_group(fake: FakeSysfs) -> None:
    """It can be claimed alone, and not beside that one."""
    above = fake.device("platform", "usb.1", driver="dwc3-qcom", group=7)
    fake.device("platform", "dwc3.1", parent=above, driver="dwc3", group=8)
    assert [move.device.name for move in plan_claim("dwc3.1").moves] == ["dwc3.1"]
    plan = plan_claim("usb.1")
    assert [device.name for device in plan.companions] == ["dwc3.1"]
    assert {step.target for step in plan.steps} == {"usb.1"}
    with pytest.raises(ClaimError, match=r"dwc3.1 goes away with usb.1"):
        plan_claim(["usb.1", "dwc3.1"])
    assert set(standings(list_devices()).values()) == {Standing.CLAIMABLE}


def test_content_of_a_container_goes_with_it(fake: FakeSysfs) -> None:
    """The fsl-mc bus (Linux 7.3, drivers/bus/fsl-mc/dprc-driver.c:835): children are devices of the same bus."""
    container = fake.device("fsl-mc", "dprc.2", driver="fsl_mc_dprc", group=7)
    fake.device("fsl-mc", "dpni.1", parent=container, driver="fsl_dpaa2_eth", group=7)
    fake.device("platform", "phy.1", parent=container, driver="x", group=7)
    plan = plan_claim("dprc.2")
    assert {move.device.name: move.driver for move in plan.moves} == {"dprc.2": "vfio-fsl-mc", "phy.1": "vfio-platform"}
    assert [device.name for device in plan.moves[0].gone] == ["dpni.1"]
    with pytest.raises(ClaimError, match=r"dpni.1 goes away with dprc.2"):
        plan_claim("dpni.1")


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
    with pytest.raises(ClaimError, match="igb is not a vfio driver"):
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
