"""Nodes that are held open."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd import list_devices
from pyiommufd.host import uses
from pyiommufd.host.uses.processes import RemoteMounts, descriptors, is_registers, look_at_processes, open_files
from tests.unit.host.uses.host import Host

NULL = "1:3"  # the number of /dev/null, a node that every machine has


def test_node_of_a_controller(host: Host) -> None:
    controller = host.fake.pci("0000:00:01.0", driver="nvme")
    host.node(controller / "nvme/nvme0", "char", NULL)
    assert host.refusals() == []
    for pid in (70, 71):
        host.process(pid, "smartd", holds="/dev/null")
    host.process(72, "other", holds="/dev/zero")
    assert host.refusals() == [("held", "/dev/nvme0 is held open by pid 70 (smartd) and pid 71 (smartd)")]
    for pid in range(73, 83):
        host.process(pid, "smartd", holds="/dev/null")
    ((_, reason),) = host.refusals()
    assert reason.endswith("pid 71 (smartd), pid 73 (smartd) and 9 more")


def test_node_in_a_folder_of_its_own_and_mapped_only(host: Host) -> None:
    adapter = host.fake.pci("0000:00:01.0", driver="amdgpu")
    host.node(adapter / "drm/card0", "char", NULL, "dri/card0")
    host.process(70, "Xorg", maps="/dev/null")
    assert host.refusals() == [("held", "/dev/dri/card0 is held open by pid 70 (Xorg)")]


def test_registers_in_sysfs(host: Host) -> None:
    """Those of a device are a file, to be mapped by a driver in user space."""
    path = "/sys/devices/pci0000:00/0000:00:01.0/resource0"
    host.process(70, "driver", holds=path)
    host.process(71, "other", maps=f"{path}_wc")
    host.process(72, "lspci", holds="/sys/devices/pci0000:00/0000:00:01.0/config")
    found = open_files(look_at_processes(mappings=True))
    assert found == {path: ["pid 70 (driver)"], f"{path}_wc": ["pid 71 (other)"]}
    assert all(map(is_registers, found))
    assert open_files(look_at_processes(mappings=False)) == {path: ["pid 70 (driver)"]}


def test_node_that_a_container_knows_by_another_path(host: Host, tmp_path: Path) -> None:
    (tmp_path / "nvme0").symlink_to("/dev/null")
    controller = host.fake.pci("0000:00:01.0", driver="nvme")
    host.node(controller / "nvme/nvme0", "char", NULL)
    host.process(1, "init")
    host.process(70, "inner", holds=str(tmp_path / "nvme0"), namespace="mnt:[2]")
    assert host.refusals() == [("held", "/dev/nvme0 is held open by pid 70 (inner)")]


@pytest.mark.parametrize("command", ["systemd-udevd", "(udev-worker)"])
def test_udev_is_no_user(host: Host, command: str) -> None:
    controller = host.fake.pci("0000:00:01.0", driver="nvme")
    host.node(controller / "nvme/nvme0", "char", NULL)
    host.process(70, command, holds="/dev/null")
    assert host.refusals() == []


def test_node_of_what_is_built_on_a_disk(host: Host, nvme: Path) -> None:
    """Such as a volume that a virtual machine has."""
    layer = host.above(nvme, name="dm-0", number="253:0")
    host.fake.file(f"{host.at(layer)}/dm/name", "vg-vm")
    host.node(layer / "node", "char", NULL, "dm-0")
    host.process(70, "qemu", holds="/dev/null")
    assert host.refusals() == [
        ("dm", "nvme0n1 is under device mapper's dm-0 (vg-vm)"),
        ("held", "/dev/dm-0 is held open by pid 70 (qemu)"),
    ]


def test_node_of_vfio_is_told_of_elsewhere_but_for_a_mediated_device(host: Host) -> None:
    own = host.fake.pci("0000:00:01.0", driver="vfio-pci", cdev=0)
    host.fake.link(f"dev/char/{NULL}", own / "vfio-dev/vfio0")
    host.process(70, "qemu", holds="/dev/null")
    assert host.refusals() == []
    parent = host.fake.pci("0000:00:02.0", driver="i915")
    (host.fake.root / f"dev/char/{NULL}").unlink()
    host.node(parent / "some-uuid/vfio-dev/vfio1", "char", NULL, "vfio/devices/vfio1")
    assert host.refusals("0000:00:02.0") == [("held", "/dev/vfio/devices/vfio1 is held open by pid 70 (qemu)")]


def test_device_behind_a_bridge_is_not_the_bridge(host: Host) -> None:
    host.fake.pci("0000:00:01.0", driver="pcieport", class_code=0x060400)
    behind = host.fake.pci("0000:01:00.0", parent="0000:00:01.0", driver="nvme")
    host.node(behind / "nvme/nvme0", "char", NULL)
    host.process(70, "smartd", holds="/dev/null")
    assert host.refusals("0000:00:01.0") == []
    assert [kind for kind, _ in host.refusals("0000:01:00.0")] == ["held"]


def test_consoles_of_the_kernel(host: Host) -> None:
    serial = host.fake.pci("0000:00:01.0", driver="serial")
    host.node(serial / "tty/ttyS4", "char", "4:68")
    console = host.fake.pci("0000:00:02.0", driver="virtio-pci")
    (console / "virtio0").mkdir()
    host.fake.link(f"{host.at(console)}/virtio0/driver", host.fake.root / "bus/virtio/drivers/virtio_console")
    (host.fake.proc / "consoles").write_text("ttyS0                -W- (EC  p a)    4:64\n")
    assert host.refusals() == host.refusals("0000:00:02.0") == []
    (host.fake.proc / "consoles").write_text(
        "ttyS4 -W- (EC  p a)    4:68\nhvc0 -W- (EC  p  )  229:0\nnetcon0 -W- (E)\n"
    )
    assert host.refusals() == [("held", "/dev/ttyS4 is held open by the kernel's console ttyS4")]
    assert host.refusals("0000:00:02.0") == [("held", "the kernel's console hvc0 may go by it")]


@pytest.mark.parametrize(("driver", "node"), [("ccp", "misc/sev"), ("ccp", "misc/sfs"), ("hfi1", "hfi1_user/hfi1_0")])
def test_node_that_has_no_parent(host: Host, driver: str, node: str) -> None:
    """Linux 7.3, drivers/crypto/ccp/sev-dev.c:2828 and sfs.c:236, drivers/infiniband/hw/hfi1/device.c:47."""
    host.fake.pci("0000:00:01.0", driver=driver)
    folder = host.node(host.fake.root / "devices/virtual" / node, "char", NULL)
    assert host.refusals() == []
    host.process(70, "qemu", holds="/dev/null")
    assert host.refusals() == [("held", f"/dev/{folder.name} is held open by pid 70 (qemu)")]
    assert uses.in_use([host.device()]) == {host.device(): {"held"}}


def test_dma_channels_of_the_kernel(host: Host) -> None:
    """Linux 7.3, drivers/dma/dmaengine.c:208."""
    engine = host.fake.pci("0000:00:01.0", driver="ioatdma")
    for number, count in enumerate(("0", "2")):
        host.fake.file(f"{host.at(engine)}/dma/dma0chan{number}/in_use", count)
        host.fake.link(f"class/dma/dma0chan{number}", engine / f"dma/dma0chan{number}")
    assert host.refusals() == [("held", "the kernel has DMA channels of it in use: dma0chan1")]
    assert uses.in_use([host.device()]) == {host.device(): {"held"}}


@pytest.mark.parametrize("name", ["nvidia", "nvidia-frontend"])
def test_node_that_sysfs_does_not_know(host: Host, name: str) -> None:
    """NVIDIA's: the driver says in /proc which one is whose."""
    for number, slot in enumerate(("0000:00:01.0", "0000:00:02.0"), 2):
        host.fake.pci(slot, driver="nvidia")
        path = host.fake.proc / f"driver/nvidia/gpus/{slot}/information"
        path.parent.mkdir(parents=True)
        path.write_text(f"Model: \t\t X\nDevice Minor: \t {number}\n")
    (host.fake.proc / "devices").write_text(f"Character devices:\n  1 {name}\n  4 tty\n\nBlock devices:\n  1 x\n")
    host.process(70, "python", holds="/dev/null")
    assert host.refusals() == []
    assert host.refusals("0000:00:02.0") == [("held", "/dev/nvidia3 is held open by pid 70 (python)")]
    assert {device.name for device in uses.in_use(list_devices())} == {"0000:00:02.0"}


def test_file_of_a_server_is_not_asked(host: Host, tmp_path: Path) -> None:
    """It may not answer: what a process has open on one is known by its mount."""
    (tmp_path / "dev").mkdir()
    host.process(70, "inner", holds=str(tmp_path / "dev/remote"))
    process = host.fake.proc / "70"
    (process / "fd/4").symlink_to(tmp_path / "dev/local")
    (process / "fd/5").symlink_to(tmp_path / "elsewhere")
    (process / "fdinfo").mkdir()
    for fd, mount, name in (("3", 31, "dev/remote"), ("4", 30, "dev/local"), ("5", 30, "elsewhere")):
        (tmp_path / name).touch()
        (process / "fdinfo" / fd).write_text(f"pos:\t0\nflags:\t02\nmnt_id:\t{mount}\n")
    host.mount("0:30", "/", process="70")
    for kind in ("nfs4", "fuse.sshfs", "ext4"):
        lines = (process / "mountinfo").read_text().splitlines()
        (process / "mountinfo").write_text(f"30 {lines[0].partition(' ')[2]}\n31 1 0:31 / /srv rw - {kind} x rw\n")
        for foreign in (True, False):
            opened = descriptors("70", "mnt:[1]", foreign=foreign, remote=RemoteMounts())
            asked = {fd for fd, _, status in opened if status is not None}
            assert asked == {"4"} | ({"5"} if foreign else set()) | ({"3"} if kind == "ext4" else set())
