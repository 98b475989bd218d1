"""How devices hang together, on machines made for it."""

from __future__ import annotations

import pytest

from pyiommufd import plan_claim
from pyiommufd.host.holders import Holder
from pyiommufd.host.overview import topology as module
from pyiommufd.host.overview.standing import Standing
from pyiommufd.host.overview.topology import look_at_topology
from tests.fake_sysfs import FakeSysfs


@pytest.fixture
def machine(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    """A port with a bridge behind it, and behind that a group of three; a device alone, held; one without a group."""
    fake.pci("0000:00:01.0", group=1, driver="pcieport", class_code=0x060400, iommu="dmar0")
    fake.pci("0000:01:00.0", parent="0000:00:01.0", group=5, class_code=0x060400, iommu="dmar0")
    fake.pci("0000:02:01.0", parent="0000:01:00.0", group=5, iommu="dmar0")
    fake.pci("0000:02:02.0", parent="0000:01:00.0", group=5, driver="pci-stub", iommu="dmar0")
    fake.pci("0000:02:03.0", parent="0000:01:00.0", group=5, driver="virtio-pci", iommu="dmar0")
    fake.pci("0000:00:02.0", group=2, driver="vfio-pci", cdev=0)
    fake.pci("0000:00:03.0")
    held = (Holder(7, "qemu", "/dev/vfio/devices/vfio0", "fd 3"), Holder(8, "old", "/dev/vfio/5", "fd 4"))
    monkeypatch.setattr(module, "holders", lambda *devices: held)
    return fake


def test_tree(machine: FakeSysfs) -> None:
    found = look_at_topology()
    assert list(found.roots) == ["pci0000:00"]
    names = [node.device.name[5:] for node in found.nodes()]
    assert names == ["00:01.0", "01:00.0", "02:01.0", "02:02.0", "02:03.0", "00:02.0", "00:03.0"]
    port, lone, outside = found.roots["pci0000:00"]
    assert [child.device.name for child in port.children] == ["0000:01:00.0"]
    assert len(port.children[0].children) == 3
    assert (port.standing, lone.standing, outside.standing) == (Standing.BRIDGE, Standing.VFIO, Standing.NO_GROUP)
    assert [holder.pid for holder in lone.holders] == [7]


def test_groups(machine: FakeSysfs) -> None:
    port, lone, shared = look_at_topology().groups
    assert [len(group.devices) for group in (port, lone, shared)] == [1, 1, 4]
    assert shared.iommus == ("dmar0",)
    # As a claim does: what is on pci-stub stays, and so does the bridge, which is on no driver.
    assert [device.name for device in shared.takes] == ["0000:02:01.0", "0000:02:03.0"]
    assert port.takes == lone.takes == ()
    assert not shared.refused
    assert [holder.pid for holder in shared.holders] == [8]
    assert lone.holders == ()


def test_what_goes_with_its_parent_is_not_taken_itself(fake: FakeSysfs) -> None:
    fake.vmd()
    found = look_at_topology()
    (vmd,) = found.roots["pci0000:00"]
    assert [node.device.name for node in vmd.walk()] == ["0000:00:0e.0", "10000:00:01.0", "10000:01:00.0"]
    (group,) = found.groups
    assert [device.name for device in group.takes] == ["0000:00:0e.0"]
    assert list(group.takes) == [move.device for move in plan_claim("0000:00:0e.0").moves]


@pytest.mark.parametrize(("class_code", "driver"), [(0x060000, None), (0x020000, "pci-stub")])
def test_what_stays_unless_it_is_named_is_taken_where_it_is_alone(
    fake: FakeSysfs, class_code: int, driver: str | None
) -> None:
    fake.pci("0000:00:00.0", group=1, class_code=class_code, driver=driver)
    (group,) = look_at_topology().groups
    assert list(group.takes) == [move.device for move in plan_claim("0000:00:00.0").moves]
