"""Uses of disks, through every layer: those that a guest cannot show, and the words for all of them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyiommufd import HostDevice
from pyiommufd.host import uses
from pyiommufd.host.uses import exports, storage
from tests.unit.host.uses.host import Host


def test_idle_disk(host: Host, nvme: Path) -> None:
    host.mount("8:1", "/srv")
    assert host.refusals() == []


def test_mounts_of_one_filesystem_are_one_refusal(host: Host, nvme: Path) -> None:
    for point in ("/srv", "/var/lib/a", "/var/lib/b", "/opt\\040x", "/var/lib/c"):
        host.mount("259:0", point)
    assert host.refusals() == [
        ("mounted", "it holds the filesystem mounted on /srv, /opt x, /var/lib/a and 2 more"),
    ]


def test_root_through_partition_raid_encryption_and_lvm(host: Host, nvme: Path) -> None:
    partition = host.partition(nvme, "259:1")
    array = host.above(partition, name="md0", number="9:0")
    (array / "md").mkdir()
    layer = array
    for name, number, alias in (("dm-0", "253:0", "luks"), ("dm-1", "253:1", "vg-root")):
        layer = host.above(layer, name=name, number=number)
        host.fake.file(f"{host.at(layer)}/dm/name", alias)
    host.mount("253:1", "/", process="1")
    host.mount("253:1", "/home", process="1")
    chain = "nvme0n1, nvme0n1p1, md0, dm-0 and dm-1"
    assert host.refusals() == [
        ("md", "nvme0n1p1 is a member of the RAID array md0"),
        ("dm", "md0 is under device mapper's dm-0 (luks)"),
        ("dm", "dm-0 (luks) is under device mapper's dm-1 (vg-root)"),
        ("root", f"it holds the root filesystem, mounted on / and /home, by way of {chain}"),
    ]


def test_many_volumes_on_one_disk_are_one_refusal(host: Host, nvme: Path) -> None:
    for number in range(9):
        layer = host.above(nvme, name=f"dm-{number}", number=f"253:{number}")
        host.fake.file(f"{host.at(layer)}/dm/name", f"vg-{number}")
    names = "dm-0 (vg-0), dm-1 (vg-1), dm-2 (vg-2) and 6 more"
    assert host.refusals() == [("dm", f"nvme0n1 is under device mapper's {names}")]


def test_holder_that_is_neither(host: Host, nvme: Path) -> None:
    host.above(nvme, name="bcache0", number="252:0")
    assert host.refusals() == [("held", "nvme0n1 is under bcache0")]


def test_filesystem_with_a_number_of_its_own_on_several_disks(
    host: Host, nvme: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mount table names one disk of them; here another one."""
    other = host.disk(host.fake.root / "devices/platform/block/sda", "8:0")
    for disk in (nvme, other):
        host.fake.link(f"fs/btrfs/some-uuid/devices/{disk.name}", disk)
    host.mount("0:40", "/srv", source="/dev/sda", kind="btrfs")
    monkeypatch.setattr(storage, "block_number", lambda path: os.makedev(8, 0) if path == "/dev/sda" else None)
    assert host.refusals() == [("mounted", "it holds the filesystem mounted on /srv")]


def test_filesystem_that_names_all_its_disks(host: Host, nvme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host.mount("0:41", "/srv", source="/dev/sda:/dev/nvme0n1", kind="bcachefs")
    monkeypatch.setattr(
        storage, "block_number", lambda path: {"/dev/nvme0n1": os.makedev(259, 0), "/dev/sda": 99}.get(path)
    )
    assert host.refusals() == [("mounted", "it holds the filesystem mounted on /srv")]


def test_what_only_an_exclusive_open_shows(host: Host, nvme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each disk, partition and volume that has no other use; of a disk without any, for all its partitions."""
    first, second = host.partition(nvme, "259:1"), host.disk(nvme / "nvme0n1p2", "259:2")
    host.fake.file(f"{host.at(second)}/partition", "2")
    monkeypatch.setattr(storage, "_PATIENCE", 0)
    for name in ("nvme0n1", "nvme0n1p1", "nvme0n1p2", "dm-0", "dm-1"):
        host.unopened[f"/dev/{name}"] = errno.EBUSY
    assert host.refusals() == [("held", "the kernel holds /dev/nvme0n1 exclusively, and does not show what for")]
    assert host.opened == ["/dev/nvme0n1"]
    for number in range(2):
        (host.above(first, name=f"dm-{number}", number=f"253:{number}") / "dm").mkdir()
    host.mount("253:0", "/srv")
    host.opened.clear()
    assert [kind for kind, _ in host.refusals()] == ["dm", "mounted", "held", "held"]
    assert host.opened == ["/dev/nvme0n1p2", "/dev/dm-1"]
    uses.in_use([host.device()])
    assert len(host.opened) == 2


def test_filesystem_of_another_mount_namespace(host: Host, nvme: Path) -> None:
    host.process(1, "systemd")
    host.process(70, "inner", namespace="mnt:[2]")
    host.process(71, "inner too", namespace="mnt:[2]")
    host.mount("259:0", "/", process="70")
    host.mount("259:0", "/", process="71")
    assert host.refusals() == [("mounted", "it holds the filesystem mounted on / of pid 70 (inner)")]


def test_namespace_of_multipath(host: Host) -> None:
    """It hangs below the subsystem, and each controller has a path to it without a node."""
    for slot in (1, 2):
        controller = host.fake.pci(f"0000:00:{slot:02}.0", driver="nvme", group=slot)
        folder = controller / f"nvme/nvme{slot}"
        (folder / f"nvme0c{slot}n1").mkdir(parents=True)
        host.fake.link(f"{host.at(folder)}/nvme0c{slot}n1/subsystem", host.fake.root / "class/block")
        host.fake.file(f"{host.at(folder)}/subsysnqn", "nqn.x")
        subsystem = host.fake.root / "devices/virtual/nvme-subsystem/nvme-subsys0"
        host.fake.link(f"{host.at(subsystem)}/nvme{slot}", folder)
    host.disk(subsystem / "nvme0n1", "259:0")
    host.fake.link("class/nvme-subsystem/nvme-subsys0", subsystem)
    host.mount("259:0", "/srv")
    for name in ("0000:00:01.0", "0000:00:02.0"):
        assert host.refusals(name) == [("mounted", "it holds the filesystem mounted on /srv")]


def test_character_device_of_a_multipath_namespace(host: Host) -> None:
    """It is beside the disk, below the subsystem (Linux 7.3, drivers/nvme/host/multipath.c, nvme_add_ns_head_cdev)."""
    controller = host.fake.pci("0000:00:01.0", driver="nvme", group=1)
    folder = controller / "nvme/nvme0"
    host.fake.file(f"{host.at(folder)}/subsysnqn", "nqn.x")
    host.fake.link("class/nvme/nvme0", folder)
    subsystem = host.fake.root / "devices/virtual/nvme-subsystem/nvme-subsys0"
    host.fake.link(f"{host.at(subsystem)}/nvme0", folder)
    host.fake.link("class/nvme-subsystem/nvme-subsys0", subsystem)
    host.disk(subsystem / "nvme0n1", "259:0")
    host.node(subsystem / "ng0n1", "char", "1:3")  # the number of /dev/null
    assert host.refusals() == []
    host.process(70, "nvme-cli", holds="/dev/null")
    assert host.refusals() == [("held", "/dev/ng0n1 is held open by pid 70 (nvme-cli)")]
    assert uses.in_use([host.device()]) == {host.device(): {"held"}}


@pytest.fixture
def adapter(host: Host) -> HostDevice:
    """A Fibre Channel adapter, whose port an NVMe controller is reached by, and that controller, without a disk yet.

    Linux 7.3, drivers/nvme/host/fabrics.c:1510 (whose child it is) and 126 (address), drivers/nvme/host/sysfs.c:505
    (transport), drivers/scsi/scsi_transport_fc.c (port_name).
    """
    folder = host.fake.pci("0000:00:01.0", driver="lpfc", group=1)
    host.fake.file(f"{host.at(folder)}/host1/fc_host/host1/port_name", "0x10000090fa942779")
    host.fake.link("class/fc_host/host1", folder / "host1/fc_host/host1")
    controller = host.fake.root / "devices/virtual/nvme-fabrics/ctl/nvme0"
    host.node(controller, "char", "1:3")  # the number of /dev/null
    here = "traddr=nn-0x200000109b000001:pn-0x100000109b000001,host_traddr=nn-0x20000090fa942779:pn-0x10000090fa942779"
    for name, text in (("transport", "fc"), ("address", here), ("subsysnqn", "nqn.x")):
        host.fake.file(f"{host.at(controller)}/{name}", text)
    host.fake.link("class/nvme/nvme0", controller)
    return host.device()


@pytest.mark.parametrize("multipath", [True, False])
def test_disk_behind_fibre_channel(host: Host, adapter: HostDevice, multipath: bool) -> None:
    """Nothing of it is below the adapter."""
    controller = host.fake.root / "devices/virtual/nvme-fabrics/ctl/nvme0"
    subsystem = host.fake.root / "devices/virtual/nvme-subsystem/nvme-subsys0"
    host.disk((subsystem if multipath else controller) / "nvme0n1", "259:0")
    host.fake.link(f"{host.at(subsystem)}/nvme0", controller)
    host.fake.link("class/nvme-subsystem/nvme-subsys0", subsystem)
    assert host.refusals() == []
    host.mount("259:0", "/")
    assert host.refusals() == [("root", "it holds the root filesystem, mounted on /")]
    assert uses.in_use([adapter]) == {adapter: {"root"}}
    other = host.fake.pci("0000:00:02.0", driver="lpfc", group=2)
    host.fake.file(f"{host.at(other)}/host2/fc_host/host2/port_name", "0x10000090fa942780")
    assert host.refusals("0000:00:02.0") == []


def test_node_of_a_controller_behind_fibre_channel(host: Host, adapter: HostDevice) -> None:
    host.process(70, "nvme", holds="/dev/null")
    assert host.refusals() == [("held", "/dev/nvme0 is held open by pid 70 (nvme)")]


@pytest.mark.parametrize("name", ["naa.10000090fa942779", "10:00:00:90:fa:94:27:79", "0x10000090fa942779"])
def test_port_that_serves_disks_over_fibre_channel(host: Host, adapter: HostDevice, name: str) -> None:
    """By the SCSI target, as its drivers call the port; and only what is switched on."""
    folder = f"kernel/config/target/qla2xxx/{name}/tpgt_1"
    host.fake.file(f"{folder}/enable", "0")
    assert host.refusals() == []
    host.fake.file(f"{folder}/enable", "1")
    assert host.refusals() == [("held", "disks are served to other machines by its Fibre Channel port")]
    assert uses.in_use([adapter]) == {adapter: {"held"}}


def test_port_that_serves_nvme_disks_over_fibre_channel(host: Host, adapter: HostDevice) -> None:
    folder = host.fake.root / "kernel/config/nvmet/ports/1"
    host.fake.file(f"{host.at(folder)}/addr_trtype", "fc")
    host.fake.file(f"{host.at(folder)}/addr_traddr", "nn-0x20000090fa942779:pn-0x10000090fa942779")
    (folder / "subsystems").mkdir()
    assert host.refusals() == []
    (folder / "subsystems/nqn.a").mkdir()
    assert host.refusals() == [("held", "disks are served to other machines by its Fibre Channel port")]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENOMEDIUM, errno.EIO])
def test_disk_that_does_not_let_itself_be_asked(host: Host, nvme: Path, number: int) -> None:
    """Only an open that succeeds says that nobody has it."""
    host.unopened["/dev/nvme0n1"] = number
    reason = f"whether the kernel holds /dev/nvme0n1 exclusively cannot be seen: {os.strerror(number)}"
    where = "; look from the host, as root" if number in (errno.EACCES, errno.EPERM) else ""
    assert host.refusals() == [("unseen", reason + where)]


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "fuse.x", "overlay"])
def test_source_is_a_text_that_anybody_may_write(host: Host, nvme: Path, kind: str) -> None:
    host.mount("0:44", "/home/somebody/x", source="/dev/nvme0n1", kind=kind)
    assert host.refusals() == []


def test_btrfs_that_no_table_shows(host: Host, nvme: Path) -> None:
    """Mounted in a mount namespace that no process is left in, say (Linux 7.3, fs/btrfs/sysfs.c)."""
    host.fake.link(f"fs/btrfs/some-uuid/devices/{nvme.name}", nvme)
    assert host.refusals() == [("mounted", "a filesystem of btrfs that is mounted is on nvme0n1")]


def test_disk_whose_node_is_not_here(host: Host, nvme: Path) -> None:
    """As in a container: the kernel's name tells which it is."""
    host.mount("0:41", "/srv", source="/dev/nvme0n1", kind="bcachefs")
    assert host.refusals() == [("mounted", "it holds the filesystem mounted on /srv")]


def test_export_of_a_path_that_is_not_here(host: Host, nvme: Path) -> None:
    host.fake.file("kernel/config/nvmet/subsystems/nqn.a/namespaces/1/device_path", "/dev/disk/by-id/x")
    host.fake.file("kernel/config/nvmet/subsystems/nqn.a/namespaces/1/enable", "1")
    ((kind, reason),) = host.refusals()
    assert kind == "unseen"
    assert "/dev/disk/by-id/x is not here" in reason


def test_disk_of_an_adapter_deep_below(host: Host) -> None:
    adapter = host.fake.pci("0000:00:01.0", driver="ahci")
    host.disk(adapter / "ata1/host0/target0:0:0/0:0:0:0/block/sda", "8:0")
    (host.fake.proc / "swaps").write_text("Filename Type Size Used Priority\n")
    host.mount("8:0", "/srv")
    assert host.refusals() == [("mounted", "it holds the filesystem mounted on /srv")]


def test_disk_behind_a_bridge_and_behind_a_function_that_makes_a_bus(host: Host) -> None:
    """A bridge may lose its driver without those behind it losing theirs; Intel's VMD may not."""
    port = host.fake.pci("0000:00:01.0", driver="pcieport", class_code=0x060400)
    behind = host.fake.pci("0000:01:00.0", parent="0000:00:01.0", driver="nvme", class_code=0x010802)
    host.disk(behind / "nvme/nvme0/nvme0n1", "259:0")
    vmd = host.fake.pci("0000:00:0e.0", driver="vmd", class_code=0x010400)
    (vmd / "pci10000:e0").mkdir()
    inner = host.fake.pci("10000:e1:00.0", parent="pci10000:e0", driver="nvme", class_code=0x010802)
    host.disk(inner / "nvme/nvme1/nvme1n1", "259:1")
    host.mount("259:0", "/a")
    host.mount("259:1", "/b")
    assert port.is_dir()
    assert host.refusals("0000:00:01.0") == []
    assert host.refusals("0000:01:00.0") == [("mounted", "it holds the filesystem mounted on /a")]
    for name in ("0000:00:0e.0", "10000:e1:00.0"):
        assert host.refusals(name) == [("mounted", "it holds the filesystem mounted on /b")]


@pytest.mark.parametrize(("tag", "refused"), [("share", True), ("other", False), (None, True)])
def test_virtiofs(host: Host, tag: str | None, refused: bool) -> None:
    """Before Linux 6.9 the kernel did not tell the tag: then any mount may be this device's."""
    device = host.fake.pci("0000:00:01.0", driver="virtio-pci")
    (device / "virtio3").mkdir()
    host.fake.link(f"{host.at(device)}/virtio3/driver", host.fake.root / "bus/virtio/drivers/virtiofs")
    if tag is not None:
        host.fake.file("fs/virtiofs/2/tag", tag)
        host.fake.link("fs/virtiofs/2/device", device / "virtio3")
    host.mount("0:50", "/srv", source="share", kind="virtiofs")
    assert host.refusals() == ([("mounted", "it holds the filesystem mounted on /srv")] if refused else [])


@pytest.mark.parametrize(
    ("tag", "options", "refused"),
    [("share", ",trans=virtio", True), ("other", ",trans=virtio", False), ("share", ",trans=tcp", False)],
)
def test_9p(host: Host, tag: str, options: str, refused: bool) -> None:
    device = host.fake.pci("0000:00:01.0", driver="virtio-pci")
    host.fake.file(f"{host.at(device)}/virtio3/mount_tag", tag)
    host.mount("0:50", "/", source="share", kind="9p", options=options)
    assert host.refusals() == ([("root", "it holds the root filesystem, mounted on /")] if refused else [])


def test_disk_that_is_served(host: Host, nvme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By NVMe over Fabrics and by the SCSI target: a partition of it, and only what is switched on."""
    host.partition(nvme, "259:1")
    numbers = {"/dev/nvme0n1": (259, 0), "/dev/nvme0n1p1": (259, 1), "/dev/sda": (8, 0)}
    monkeypatch.setattr(exports, "block_number", lambda path: os.makedev(*numbers[path]) if path in numbers else None)
    served = {
        "nvmet/subsystems/nqn.a/namespaces/1": ("device_path", "/dev/nvme0n1p1", "1"),
        "nvmet/subsystems/nqn.a/namespaces/2": ("device_path", "/dev/nvme0n1", "0"),
        "nvmet/subsystems/nqn.a/namespaces/3": ("device_path", "/dev/sda", "1"),
        "target/core/iblock_0/disk": ("udev_path", "/dev/nvme0n1", "1"),
        "target/core/fileio_0/image": ("udev_path", "/srv/image", "1"),
    }
    for folder, (attribute, path, on) in served.items():
        host.fake.file(f"kernel/config/{folder}/{attribute}", path)
        host.fake.file(f"kernel/config/{folder}/enable", on)
    assert host.refusals() == [
        ("held", "nvme0n1p1 is served as namespace 1 of the NVMe subsystem nqn.a, by way of nvme0n1 and nvme0n1p1"),
        ("held", "nvme0n1 is served as the SCSI target's iblock_0/disk"),
    ]
    assert uses.in_use([host.device()]) == {host.device(): {"held"}}


def test_configfs_that_is_mounted_elsewhere(host: Host, nvme: Path) -> None:
    """A container that sees all processes, with a sysfs of its own: init's mounts tell that something may be served."""
    host.mount("0:20", "/sys/kernel/config", kind="configfs", process="1")
    reason = "whether one of its disks is served to other machines cannot be seen"
    assert host.refusals() == [("unseen", f"{reason}: mount configfs on /sys/kernel/config, or look on the host")]


def test_controller_that_is_served_as_a_whole(host: Host, nvme: Path) -> None:
    host.fake.link("dev/char/1:3", nvme.parent)  # the number of /dev/null
    host.fake.file("kernel/config/nvmet/subsystems/nqn.a/passthru/device_path", "/dev/null")
    host.fake.file("kernel/config/nvmet/subsystems/nqn.a/passthru/enable", "1")
    assert host.refusals() == [("held", "it is served as the NVMe subsystem nqn.a")]
