"""How devices stand to being claimed, on machines made for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd import HostDevice, Refusal, find_device, list_devices
from pyiommufd.host import uses
from pyiommufd.host.overview.standing import Standing, standings
from pyiommufd.host.uses.snapshot import MachineSnapshot
from tests.fake_sysfs import FakeSysfs


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices that were looked at in full: those whose uses were asked for. They are in use."""
    asked: list[str] = []

    def refusals(device: HostDevice, snapshot: MachineSnapshot) -> tuple[Refusal, ...]:
        asked.append(device.name)
        return (Refusal(device.name, "mounted", "it holds /"),)

    monkeypatch.setattr(uses, "_refusals", refusals)
    return asked


def test_each(fake: FakeSysfs, looked_at: list[str]) -> None:
    fake.pci("0000:00:01.0", group=1)
    fake.pci("0000:00:02.0", group=2, driver="vfio-pci", cdev=0)
    fake.pci("0000:00:03.0", group=3, driver="pcieport", class_code=0x060400)
    fake.pci("0000:00:04.0")
    fake.pci("0000:00:05.0", group=5, driver="e1000e")
    fake.pci("0000:00:06.0", group=6, driver="vfio-pci", cdev=1, noiommu=True)
    found = {device.name[5:]: standing for device, standing in standings(list_devices()).items()}
    assert found == {
        "00:01.0": Standing.CLAIMABLE,
        "00:02.0": Standing.VFIO,
        "00:03.0": Standing.BRIDGE,
        "00:04.0": Standing.NO_GROUP,
        "00:05.0": Standing.CLAIMABLE,
        "00:06.0": Standing.VFIO_NOIOMMU,
    }
    # None of them has a disk or an interface: nothing had to be searched.
    assert looked_at == []


@pytest.mark.parametrize("kind", ["block", "net", "nvme"])
def test_use_concerns_the_group(fake: FakeSysfs, looked_at: list[str], kind: str) -> None:
    port = fake.pci("0000:00:01.0", group=7, driver="pcieport", class_code=0x060400)
    disk = fake.pci("0000:01:00.0", parent="0000:00:01.0", group=7, driver="nvme")
    fake.pci("0000:01:00.1", parent="0000:00:01.0", group=7)
    fake.pci("0000:00:02.0", group=8)
    deep: Path = disk / "ata1" / kind / "x0"
    deep.mkdir(parents=True)
    fake.link(f"class/{kind}/x0", deep)
    virtual = fake.root / f"devices/virtual/{kind}/lo"
    virtual.mkdir(parents=True)
    fake.link(f"class/{kind}/lo", virtual)
    found = {device.name[5:]: str(standing) for device, standing in standings(list_devices()).items()}
    assert found == {"00:01.0": "bridge", "01:00.0": "in-use", "01:00.1": "in-use", "00:02.0": "claimable"}
    assert looked_at == ["0000:01:00.0"]
    assert port.name == "0000:00:01.0"


def test_what_goes_with_its_parent(fake: FakeSysfs) -> None:
    """A claim of such a device is refused: of its parent it is not."""
    vmd = fake.vmd()
    found = {device.name: str(standing) for device, standing in standings(list_devices()).items()}
    assert found == {"0000:00:0e.0": "claimable", "10000:00:01.0": "bridge", "10000:01:00.0": "with-parent"}
    (vmd / "driver").unlink()
    fake.link(str((vmd / "driver").relative_to(fake.root)), fake.root / "bus/pci/drivers/pci-stub")
    assert standings(list_devices())[find_device("10000:01:00.0")] is Standing.CLAIMABLE


@pytest.mark.parametrize("class_code", [0x060100, 0x068000])
def test_what_has_the_class_of_a_bridge_and_is_none(fake: FakeSysfs, class_code: int) -> None:
    fake.pci("0000:00:1f.0", group=1, class_code=class_code)
    assert list(standings(list_devices()).values()) == [Standing.CLAIMABLE]
