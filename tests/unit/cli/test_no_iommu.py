"""A machine without an IOMMU: every command says so in the same words, with the same way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pyiommufd.cli.group import cli
from pyiommufd.host.checks.lacks import NOT_COVERED, no_iommu, no_iommufd
from pyiommufd.host.claims import journal
from tests.fake_sysfs import FakeSysfs

DEVICE = "0000:00:01.0"


@pytest.fixture(autouse=True)
def machine(fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    monkeypatch.setattr(journal, "RUN", tmp_path / "run")
    fake.pci(DEVICE, driver="e1000e")
    return fake


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["check"], 3),
        (["groups"], 3),
        (["groups", "7"], 3),
        (["plan", DEVICE], 3),
        (["claim", "--dry-run", DEVICE], 3),
        (["run", DEVICE, "--", "true"], 125),
        (["show", DEVICE], 0),
        (["list"], 0),
        (["topology"], 0),
        (["explain", "sysfs-bind", "EINVAL", DEVICE], 0),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_told_one_way(arguments: list[str], status: int) -> None:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == status, result.output
    lack = no_iommu()
    assert lack is not None
    assert lack.summary in result.output
    assert lack.fix in result.output
    assert "pyiommufd guest -- COMMAND" in lack.fix


def test_iommufd_is_told_one_way() -> None:
    lack = no_iommufd()
    assert lack is not None
    result = CliRunner().invoke(cli, ["check"])
    assert lack.summary in result.output
    assert lack.fix in result.output


def test_with_an_iommu_nothing_is_said(machine: FakeSysfs) -> None:
    machine.pci("0000:00:02.0", group=2)
    for arguments in (["list"], ["topology"], ["groups"], ["show", "0000:00:02.0"]):
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        assert "no IOMMU:" not in result.output
    # Of one that it does not reach:
    shown = CliRunner().invoke(cli, ["show", DEVICE]).output
    assert NOT_COVERED.summary in shown


def test_force_says_what_it_leaves(machine: FakeSysfs) -> None:
    machine.file("module/vfio/parameters/enable_unsafe_noiommu_mode", "N")
    forced = ["claim", "--dry-run", "--force", "noiommu", DEVICE]
    result = CliRunner().invoke(cli, forced, catch_exceptions=False)
    assert result.exit_code == 0
    way = "echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
    assert f"forced: the claim fails unless vfio's enable_unsafe_noiommu_mode is on ({way})\n" in result.stderr
    assert (
        "forced: with noiommu forced, DMA of the device reaches all of memory, and to open it takes CAP_SYS_RAWIO\n"
        in result.stderr
    )
    machine.file("module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")
    assert "the claim fails" not in CliRunner().invoke(cli, forced, catch_exceptions=False).stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["check"], 3, "vfio has devices without an IOMMU: their DMA reaches all memory"),
        (["list"], 0, "pyiommufd: vfio-noiommu: its DMA reaches all memory, and nothing blocks it"),
        (["list", "--standing", "vfio-noiommu"], 0, "0000:00:02.0"),
        (["show", "noiommu-vfio0"], 0, "none: its DMA reaches all memory, and nothing blocks it"),
        (["groups"], 0, "made by VFIO, viable\n  no IOMMU: its DMA reaches all memory, and nothing blocks it\n"),
        (["topology"], 0, "group 0 (no IOMMU: its DMA reaches all memory, and nothing blocks it)"),
        (["topology", "--dot"], 0, "no IOMMU: its DMA reaches all memory, and nothing blocks it"),
        (["plan", "/dev/vfio/devices/noiommu-vfio0"], 3, "DMA of the device reaches all of memory"),
        (["claim", "--dry-run", "0000:00:02.0"], 3, "[noiommu]"),
        (["explain", "attach", "EINVAL", "0000:00:02.0"], 0, "no IOMMU covers it: its DMA reaches all memory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("cdev", [0, -1], ids=["7.3", "older"])
def test_device_on_vfio_all_the_same(
    machine: FakeSysfs, arguments: list[str], status: int, said: str, cdev: int
) -> None:
    """VFIO has made a group for it, which is no sign of an IOMMU; older kernels give it no node."""
    if cdev < 0:
        arguments = ["0000:00:02.0" if "noiommu-vfio0" in word else word for word in arguments]
    folder = machine.pci("0000:00:02.0", driver="vfio-pci", group=0, cdev=cdev, noiommu=True)
    if cdev >= 0:
        machine.link("class/vfio-dev/noiommu-vfio0", folder / "vfio-dev/noiommu-vfio0")
    (machine.proc / "devices").write_text("Character devices:\n240 vfio-dev\n")
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == status, result.output
    assert said in result.output
    assert "an IOMMU is on" not in result.output
    assert "isolated-msi" not in result.output
    assert ("use VFIO's groups (/dev/vfio/noiommu-0)" in result.output) == (cdev < 0 and arguments[0] in _OF_NODES)


@pytest.mark.parametrize("request_and_errno", [("bind", "ENOENT"), ("bind", "EINVAL"), ("open", "ENOENT")])
def test_claim_by_force_is_the_way_where_vfio_takes_such_devices(
    machine: FakeSysfs, request_and_errno: tuple[str, str]
) -> None:
    machine.file("module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")
    machine.file("class/misc/iommu/dev", "10:1")
    shown = CliRunner().invoke(cli, ["explain", *request_and_errno, DEVICE], catch_exceptions=False).stdout
    first = shown.split("\n  2. ")[0]
    assert f"1. {DEVICE} is not on a vfio driver\n" in first
    assert f"fix: claim it first: pyiommufd claim --force noiommu {DEVICE}\n" in f"{first}\n"
    assert "VT-d" not in shown


@pytest.mark.parametrize("request_and_errno", [("attach", "EINVAL"), ("hwpt_alloc", "ENOTSUP")])
def test_nothing_points_to_what_caps_does_not_say(machine: FakeSysfs, request_and_errno: tuple[str, str]) -> None:
    machine.pci("0000:00:02.0", driver="vfio-pci", group=0, cdev=0, noiommu=True)
    shown = CliRunner().invoke(cli, ["explain", *request_and_errno, "0000:00:02.0"], catch_exceptions=False).stdout
    assert "caps DEVICE" not in shown


def test_claim_for_a_user_names_the_capability(machine: FakeSysfs) -> None:
    machine.file("module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")
    given = ["claim", "--dry-run", "--force", "noiommu", DEVICE, "--user"]
    said = CliRunner().invoke(cli, [*given, "nobody"], catch_exceptions=False).stderr
    assert f"nobody is given the node of {DEVICE}, and opens it only with CAP_SYS_RAWIO\n" in said
    assert "is given" not in CliRunner().invoke(cli, [*given, "root"], catch_exceptions=False).stderr


_OF_NODES = ("check", "show", "plan", "claim")
