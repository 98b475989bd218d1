"""Command lines with devices in them, and what stands in the way."""

from __future__ import annotations

import itertools

import pytest

from pyiommufd.host.discovery.devices import from_sys_path
from pyiommufd.vmm import Kind, command_line, kind_of, shell_line
from tests.fake_sysfs import FakeSysfs


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("qemu-system-x86_64", Kind.QEMU),
        ("/usr/libexec/qemu-kvm", Kind.QEMU),
        ("cloud-hypervisor", Kind.CLOUD_HYPERVISOR),
        ("/opt/cloud-hypervisor-static", Kind.CLOUD_HYPERVISOR),
        ("python", Kind.OTHER),
        ("my-qemu-system-x86_64.sh", Kind.OTHER),
    ],
)
def test_kind_by_name(program: str, kind: Kind) -> None:
    assert kind_of(program) is kind


def test_qemu() -> None:
    assert command_line(["qemu-system-x86_64", "-m", "2G"], [7, 8, 9], options=["bus=rp1"]) == [
        *("qemu-system-x86_64", "-m", "2G", "-object", "iommufd,id=iommufd0,fd=7"),
        *("-device", "vfio-pci,id=vfio0,fd=8,iommufd=iommufd0,bus=rp1"),
        *("-device", "vfio-pci,id=vfio1,fd=9,iommufd=iommufd0,bus=rp1"),
    ]


@pytest.mark.parametrize(
    "given",
    [
        ["-object", "iommufd,id=iommufd0", "-device", "edu,id=vfio0"],
        ["-object", '{"qom-type": "iommufd", "id": "iommufd0"}', "-device", "{'driver': 'edu', 'id': 'vfio0'}"],
    ],
)
def test_ids_that_are_taken(given: list[str]) -> None:
    line = command_line(["qemu-system-x86_64", *given], [7, 8])
    assert line[-3:] == ["iommufd,id=iommufd1,fd=7", "-device", "vfio-pci,id=vfio1,fd=8,iommufd=iommufd1"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["-daemonize"], "another process"),
        (["--daemonize"], "another process"),
        (["-runas", "nobody"], "user="),
        (["-run-with", "chroot=/x,user=nobody"], r"VMM\(user=\)"),
    ],
)
def test_qemu_that_would_outlive_is_refused(given: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=rf"^{given[0]}.*{why}"):
        command_line(["qemu-system-x86_64", *given], [7, 8])
    assert command_line(["program", *given], [7, 8]) == ["program", *given]


def test_what_only_looks_like_it_is_not() -> None:
    given = ["qemu-system-x86_64", "-name", "daemonize", "-run-with", "chroot=/x"]
    assert command_line(given, [7, 8])[: len(given)] == given


def values_of(line: list[str], option: str) -> list[str]:
    """The values of an option that may be given once."""
    assert line.count(option) == 1
    return list(itertools.takewhile(lambda word: not word.startswith("-"), line[line.index(option) + 1 :]))


@pytest.mark.parametrize(
    ("given", "platform", "devices"),
    [
        ([], "iommufd=on,iommufd_fd=7", []),
        (["--platform", "num_pci_segments=2,iommufd=on"], "num_pci_segments=2,iommufd=on,iommufd_fd=7", []),
        (["--platform=uuid=x", "--device=path=/a,id=vfio0"], "uuid=x,iommufd=on,iommufd_fd=7", ["path=/a,id=vfio0"]),
        (["--device", "path=/a", "path=/b", "--cpus", "boot=1"], "iommufd=on,iommufd_fd=7", ["path=/a", "path=/b"]),
    ],
)
def test_cloud_hypervisor(given: list[str], platform: str, devices: list[str]) -> None:
    line = command_line(["cloud-hypervisor", "--kernel", "vmlinux", *given], [7, 8, 9], options=["pci_segment=1"])
    first = 1 if any("id=vfio0" in argument for argument in given) else 0
    assert line[:3] == ["cloud-hypervisor", "--kernel", "vmlinux"]
    assert values_of(line, "--platform") == [platform]
    mine = [f"fd={fd},id=vfio{first + number},pci_segment=1" for number, fd in enumerate((8, 9))]
    assert values_of(line, "--device") == [*devices, *mine]
    assert ("--cpus" in line) == ("--cpus" in given)


@pytest.mark.parametrize("setting", ["iommufd=off", "iommufd_fd=3"])
def test_iommufd_of_somebody_elses_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        command_line(["cloud-hypervisor", "--platform", setting], [7, 8])


def test_places_in_other_programs_arguments() -> None:
    line = command_line(["prog", "--fd={iommufd}", "{device1}", "{device0}:{device1}", "{device2}"], [7, 8, 9])
    assert line == ["prog", "--fd=7", "9", "8:9", "{device2}"]
    with pytest.raises(ValueError, match="put them into its arguments"):
        command_line(["prog"], [7, 8], options=["x=y"])


@pytest.mark.parametrize("program", ["qemu-kvm", "cloud-hypervisor"])
@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("", "KEY=VALUE"),
        ("bus", "KEY=VALUE"),
        ("=rp1", "KEY=VALUE"),
        ("bus=rp1,fd=3", "fd= of a device.*comes with the fds; leave it out"),
        ("id=gpu", "id= of a device"),
        ("vf-token=x", "vf-token= as an option of a device; give vf_token="),
    ],
)
def test_options_that_no_device_can_have(program: str, option: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        command_line([program], [7, 8], options=["addr=2", option])
    assert command_line([program], [7, 8], options=["romfile=/a,,id=b.rom"])[-1].endswith(",romfile=/a,,id=b.rom")


def test_kind_may_be_named() -> None:
    assert command_line(["wrapper"], [7, 8], kind=Kind.QEMU)[1] == "-object"
    assert command_line(["qemu-kvm", "{device0}"], [7, 8], kind=Kind.OTHER) == ["qemu-kvm", "8"]


@pytest.mark.parametrize(
    "command",
    [
        ["taskset", "-c", "2-5", "qemu-system-x86_64", "-m", "2G"],
        ["env", "A=b", "/opt/bin/cloud-hypervisor"],
        ["sh", "-c", "qemu-kvm -m 2G; echo done"],
    ],
)
def test_monitor_behind_another_program_is_not_left_without_devices(command: list[str]) -> None:
    with pytest.raises(ValueError, match=f"{command[0]} is not a monitor that is known by its name.*kind=Kind.OTHER"):
        command_line(command, [7, 8])
    assert command_line(command, [7, 8], kind=Kind.OTHER) == command
    assert command_line([*command, "{device0}"], [7, 8])[-1] == "8"
    assert command_line(command, [7, 8], kind=Kind.QEMU)[-2] == "-device"


@pytest.mark.parametrize(("command", "fds"), [([], [7, 8]), (["prog"], [7])])
def test_nothing_to_make_a_line_of(command: list[str], fds: list[int]) -> None:
    with pytest.raises(ValueError, match="takes a program"):
        command_line(command, fds)


def test_line_for_a_shell(fake: FakeSysfs) -> None:
    device = from_sys_path(fake.pci("0000:00:02.0", group=3))
    node = '"/dev/vfio/devices/$(ls /sys/bus/pci/devices/0000:00:02.0/vfio-dev)"'
    assert shell_line(["qemu-kvm", "-name", "a b"], [device]) == (
        "qemu-kvm -name 'a b' -object iommufd,id=iommufd0,fd=3 -device vfio-pci,id=vfio0,fd=4,iommufd=iommufd0 "
        f"3<>/dev/iommu 4<>{node}"
    )
    assert shell_line(["driver"], [device]) == f"PYIOMMUFD_FDS='3 4' driver 3<>/dev/iommu 4<>{node}"
