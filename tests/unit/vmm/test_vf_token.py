"""VF tokens, as far as they go without a kernel."""

from __future__ import annotations

import uuid

import pytest

from pyiommufd import HandoverError
from pyiommufd.host.discovery.devices import HostDevice, from_sys_path
from pyiommufd.vmm import Handover, command_line, shell_line
from pyiommufd.vmm.vf_token import check_token, token_fds
from tests.fake_sysfs import FakeSysfs

TOKEN = uuid.UUID("bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3")

Devices = tuple[HostDevice, HostDevice, HostDevice, HostDevice]


@pytest.fixture
def devices(fake: FakeSysfs) -> Devices:
    """A physical function on vfio-pci and its virtual one, one of a host driver's, and a device without any."""
    physical = fake.pci("0000:01:00.0", driver="vfio-pci", group=1, cdev=-1, sriov_totalvfs="2")
    virtual = fake.pci("0000:01:00.1", driver="vfio-pci", group=2, cdev=-1)
    fake.link(f"{virtual.relative_to(fake.root)}/physfn", physical)
    hosts = fake.pci("0000:02:00.0", driver="nvme", group=3, sriov_totalvfs="2")
    plain = fake.pci("0000:02:00.1", driver="vfio-pci", group=4, cdev=-1)
    fake.link(f"{plain.relative_to(fake.root)}/physfn", hosts)
    other = fake.pci("0000:03:00.0", driver="vfio-pci", group=5, cdev=-1)
    one, two, three, four = map(from_sys_path, (physical, virtual, plain, other))
    return one, two, three, four


def test_who_takes_one(devices: Devices) -> None:
    assert token_fds([3, 4, 5, 6, 7], devices) == [4, 5]


def test_missing_or_needless(devices: Devices) -> None:
    """Where the kernel cannot be asked, as the node is not there yet."""
    physical, virtual, plain, other = devices
    on = f"{virtual}: its physical function {physical} is on vfio-pci"
    with pytest.raises(HandoverError, match=f"{on}, and nobody is seen to hold that.*; bind {physical} first with a"):
        check_token([other, virtual], None)
    with pytest.raises(HandoverError, match=f"{on}: it takes a VF token; give vf_token=, which its bind sets before"):
        check_token([physical, virtual], None)
    with pytest.raises(HandoverError, match=f"of {plain}, {other} the kernel would refuse it; leave vf_token= out"):
        check_token([plain, other], TOKEN)
    check_token([virtual, other], TOKEN)
    check_token([physical, plain], None)


def test_what_is_no_token() -> None:
    with pytest.raises(ValueError, match="not a UUID"):
        Handover.open(["0000:01:00.1"], vf_token=str(TOKEN)[1:])
    with pytest.raises(HandoverError, match="PYIOMMUFD_VF_TOKEN: 'x' is not a UUID"):
        Handover.inherited({"PYIOMMUFD_FDS": "998 999", "PYIOMMUFD_VF_TOKEN": "x"})


def test_command_lines() -> None:
    qemu = "vfio-pci,id=vfio{},fd={},iommufd=iommufd0,bus=rp1"
    line = command_line(["qemu-kvm"], [7, 8, 9], options=["bus=rp1"], vf_token=TOKEN, vf_token_fds=[9])
    assert line[-3:] == [qemu.format(0, 8), "-device", f"{qemu.format(1, 9)},vf-token={TOKEN}"]
    assert command_line(["qemu-kvm"], [7, 8], vf_token=TOKEN.hex)[-1].endswith(f",vf-token={TOKEN}")
    assert command_line(["driver", "--token={vf-token}"], [7, 8], vf_token=TOKEN) == ["driver", f"--token={TOKEN}"]
    assert command_line(["driver", "{vf-token}"], [7, 8]) == ["driver", "{vf-token}"]
    with pytest.raises(ValueError, match="Cloud Hypervisor has no option for a VF token"):
        command_line(["cloud-hypervisor"], [7, 8], vf_token=TOKEN)


def test_lines_for_a_shell(devices: Devices) -> None:
    _, virtual, plain, _ = devices
    line = shell_line(["qemu-kvm"], [plain, virtual], vf_token=TOKEN)
    assert f"fd=4,iommufd=iommufd0 -device vfio-pci,id=vfio1,fd=5,iommufd=iommufd0,vf-token={TOKEN} 3<>" in line
    line = shell_line(["driver"], [virtual], vf_token=TOKEN)
    assert line.startswith(f"PYIOMMUFD_FDS='3 4' PYIOMMUFD_VF_TOKEN={TOKEN} driver 3<>")
