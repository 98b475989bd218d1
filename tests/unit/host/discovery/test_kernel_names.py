"""The kernel's names of a device's interfaces and disks, on machines made for it."""

from __future__ import annotations

from pyiommufd import find_device, list_devices
from pyiommufd.host.discovery.kernel_names import KernelNames, kernel_names
from tests.fake_sysfs import FakeSysfs


def test_names_belong_to_the_nearest_device(fake: FakeSysfs) -> None:
    port = fake.pci("0000:00:01.0", class_code=0x060400, driver="pcieport")
    card = fake.pci("0000:01:00.0", parent=port.name)
    fake.interface(card, "eth10")
    fake.interface(card, "eth9")
    sata = fake.pci("0000:00:02.0")
    disk = fake.disk(sata / "ata1/host0/target0:0:0/0:0:0:0/block/sda", "8:0")
    fake.disk(disk / "sda1", "8:1", partition=True)
    fake.disk(fake.root / "devices/virtual/block/dm-0", "254:0")
    fake.interface(fake.root / "devices/virtual", "lo")
    fake.file("class/net/bonding_masters")
    names = kernel_names(list_devices())
    assert names[find_device("01:00.0")] == KernelNames(("eth9", "eth10"), ())
    assert names[find_device("00:02.0")] == KernelNames((), ("sda",))
    assert names[find_device("00:01.0")] == KernelNames()
    assert find_device("00:01.0").interfaces == ()
    assert find_device("01:00.0").interfaces == ("eth9", "eth10")
    assert find_device("00:02.0").block_devices == ("sda",)


def test_disk_of_two_controllers_belongs_to_both(fake: FakeSysfs) -> None:
    """The disk is below the subsystem; each controller has a path to it, which has no node."""
    for number in (1, 2):
        controller = fake.pci(f"0000:00:0{number}.0", driver="nvme") / f"nvme/nvme{number}"
        fake.link(f"block/nvme0c{number}n1", controller / f"nvme0c{number}n1")
        fake.link(f"devices/virtual/nvme-subsystem/nvme-subsys0/nvme{number}", controller)
    fake.disk(fake.root / "devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "259:0")
    names = kernel_names(list_devices())
    assert [str(one) for one in names.values()] == ["nvme0n1", "nvme0n1"]


def test_names_pass_a_device_that_has_no_iommu(fake: FakeSysfs) -> None:
    """The slot of a card reader is a device of its own below the PCI function that does its DMA."""
    reader = fake.pci("0000:02:00.0", group=1)
    slot = fake.device("platform", "rtsx_pci_sdmmc.0", parent=reader, group=None)
    fake.disk(slot / "mmc_host/mmc0/mmc0:0001/block/mmcblk0", "179:0")
    alone = fake.device("platform", "a.mmc", group=None)
    fake.disk(alone / "block/mmcblk1", "179:8")
    covered = fake.device("platform", "b.mmc", parent=reader, group=2)
    fake.disk(covered / "block/mmcblk2", "179:16")
    for disk, name in (("mmcblk0", "0000:02:00.0"), ("mmcblk1", "a.mmc"), ("mmcblk2", "b.mmc")):
        device = find_device(disk)
        assert device.name == name
        assert device.block_devices == (disk,)
    all_of_it = kernel_names([find_device("rtsx_pci_sdmmc.0"), find_device("02:00.0")])
    assert [str(names) for names in all_of_it.values()] == ["", "mmcblk0"]


def test_many_names_are_cut_in_a_line() -> None:
    assert str(KernelNames(("eth0",), ("sda", "sdb", "sdc", "sdd"))) == "eth0, sda, sdb and 2 more"
    assert str(KernelNames()) == ""
