"""What `check` finds, on machines made for it: each shortfall, its evidence and its fix, and its absence."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from pyiommufd import list_devices, list_groups
from pyiommufd.host import drivers, limits, running_kernel, sysfs
from pyiommufd.host.checks import device_checks, lacks, platform_checks
from pyiommufd.host.checks.finding import Finding, Machine, State
from pyiommufd.host.checks.readiness import readiness
from pyiommufd.host.uses.processes import Processes
from tests.fake_sysfs import FakeSysfs


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """How the kernel is configured, and which modules it has (as ``module NAME``)."""
    options: dict[str, str] = {}
    monkeypatch.setattr(lacks, "kernel_option", options.get)
    monkeypatch.setattr(running_kernel, "kernel_option", options.get)
    monkeypatch.setattr(lacks, "module_file", lambda name: options.get(f"module {name}"))
    return options


def found(check: str, dev: Path = Path("/nonexistent")) -> list[Finding]:
    """What that check finds on the fake machine."""
    machine = Machine(tuple(list_devices()), tuple(list_groups()), dev)
    return [finding for finding in readiness(machine) if finding.check == check]


def only(check: str, state: State, dev: Path = Path("/nonexistent")) -> Finding:
    """Its only finding, which is of that state."""
    (finding,) = found(check, dev)
    assert finding.state is state
    assert bool(finding.fix) == (state is not State.OK)
    return finding


@pytest.mark.parametrize("unseen", [[], [("other users' processes", "as root"), ("some", "elsewhere")]])
def test_processes_that_cannot_be_looked_at(
    fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch, unseen: list[tuple[str, str]]
) -> None:
    """In no other namespace than init's."""
    monkeypatch.setattr(platform_checks, "visibility_note", lambda: "")
    monkeypatch.setattr(platform_checks, "look_at_processes", lambda *, mappings: Processes(unseen=unseen))
    finding = only("namespaces", State.WARNING if unseen else State.OK)
    assert ("what other users' processes and some do with devices is not seen" in finding.summary) == bool(unseen)
    assert finding.fix == ("look as root and elsewhere" if unseen else "")


def test_iommu_that_is_on(fake: FakeSysfs) -> None:
    fake.pci("0000:00:01.0", group=1, iommu="dmar0")
    assert "dmar0; 1 group" in only("iommu", State.OK).evidence
    fake.pci("0000:00:02.0")
    on, partly = found("iommu")
    assert (on.state, partly.state, partly.devices) == (State.OK, State.WARNING, ("0000:00:02.0",))


@pytest.mark.parametrize(
    ("table", "command_line", "fix"),
    [
        ("DMAR", "quiet", "boot with intel_iommu=on"),
        ("IVRS", "quiet", "AMD-Vi"),
        ("IORT", "quiet", "driver of that IOMMU"),
        ("DMAR", "quiet intel_iommu=off splash iommu=pt", "boot without intel_iommu=off"),
        ("IVRS", "amd_iommu=off", "boot without amd_iommu=off"),
        (None, "iommu=off", "boot without iommu=off"),
    ],
)
def test_iommu_that_is_off(fake: FakeSysfs, table: str | None, command_line: str, fix: str) -> None:
    fake.pci("0000:00:01.0")
    if table is not None:
        fake.file(f"firmware/acpi/tables/{table}")
    (fake.proc / "cmdline").write_text(f"{command_line}\n")
    finding = only("iommu", State.MISSING)
    assert finding.summary.startswith("no IOMMU: ")
    assert table is None or "off" in command_line or table in finding.summary
    for word in command_line.split():
        assert ("iommu" in word) == (word in finding.evidence)
    assert fix in finding.fix


def test_no_iommu(fake: FakeSysfs) -> None:
    fake.pci("0000:00:01.0")
    finding = only("iommu", State.MISSING)
    assert finding.summary.startswith("no IOMMU: ")
    assert "firmware" in finding.fix
    assert "pyiommufd guest" in finding.fix


@pytest.mark.parametrize("cdev", [0, -1])
def test_vfio_without_an_iommu(fake: FakeSysfs, cdev: int) -> None:
    """The group that VFIO makes shows no IOMMU; a missing node is not the kernel's want of nodes."""
    (fake.proc / "devices").write_text("Character devices:\n240 vfio-dev\n")
    fake.file("module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")
    fake.pci("0000:00:01.0")
    missing, unsafe = found("iommu")
    assert (missing.state, unsafe.state, unsafe.devices) == (State.MISSING, State.WARNING, ())
    fake.pci("0000:00:02.0", driver="vfio-pci", group=0, cdev=cdev, noiommu=True)
    missing, unsafe = found("iommu")
    assert missing.summary.startswith("no IOMMU: ")
    assert (unsafe.state, unsafe.devices) == (State.WARNING, ("0000:00:02.0",))
    assert "reaches all memory" in unsafe.summary
    assert found("isolated-msi") == found("reserved") == found("mixed-group") == []
    nodes, *without = found("cdev")
    assert nodes.state is State.OK
    assert [(one.state, one.devices) for one in without] == [(State.WARNING, ("0000:00:02.0",))] * (cdev < 0)
    # Beside an IOMMU that does not cover it:
    fake.pci("0000:00:03.0", group=3, iommu="dmar0")
    on, partly, unsafe = found("iommu")
    assert on.evidence == "dmar0; 1 group"
    assert partly.devices == ("0000:00:01.0", "0000:00:02.0")
    assert unsafe.devices == ("0000:00:02.0",)


def test_iommufd(fake: FakeSysfs, tmp_path: Path, kernel: dict[str, str]) -> None:
    assert "CONFIG_IOMMUFD=unknown" in only("iommufd", State.MISSING).evidence
    kernel["IOMMUFD"] = "n"
    finding = only("iommufd", State.MISSING)
    assert "CONFIG_IOMMUFD=n" in finding.evidence
    assert "CONFIG_IOMMUFD=m and CONFIG_VFIO_DEVICE_CDEV=y (docs/hosts.md, A kernel for Debian)" in finding.fix
    kernel |= {"IOMMUFD": "m", "module iommufd": "kernel/drivers/iommu/iommufd/iommufd.ko"}
    assert only("iommufd", State.MISSING).fix.startswith("modprobe iommufd")
    fake.file("class/misc/iommu/dev", "10:257")
    assert "container" in only("iommufd", State.MISSING, tmp_path).fix
    (tmp_path / "iommu").touch()
    only("iommufd", State.OK, tmp_path)


def test_cdev(fake: FakeSysfs, kernel: dict[str, str]) -> None:
    only("cdev", State.UNKNOWN)
    kernel["VFIO_DEVICE_CDEV"] = "n"
    assert only("cdev", State.MISSING).fix == "as for iommufd"
    fake.file("class/misc/iommu/dev", "10:257")
    assert "CONFIG_VFIO_DEVICE_CDEV=y" in only("cdev", State.MISSING).fix
    (fake.root / "module/vfio").mkdir()
    only("cdev", State.MISSING)
    (fake.proc / "devices").write_text("Character devices:\n245 vfio-dev\n246 vfio\n")
    only("cdev", State.OK)
    fake.pci("0000:00:01.0", group=1, driver="vfio-pci", cdev=-1)
    assert only("cdev", State.MISSING).devices == ("0000:00:01.0",)


def test_vfio_pci(fake: FakeSysfs, kernel: dict[str, str]) -> None:
    kernel |= {"VFIO_PCI": "m", "module vfio-pci": "kernel/drivers/vfio/pci/vfio-pci.ko.xz"}
    assert only("vfio-pci", State.MISSING).fix.startswith("modprobe vfio-pci")
    (fake.root / "bus/pci/drivers/vfio-pci").mkdir()
    only("vfio-pci", State.OK)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the kernel tells it on x86 only")
def test_isolated_interrupts(fake: FakeSysfs) -> None:
    fake.pci("0000:00:01.0", group=1)
    only("isolated-msi", State.UNKNOWN)
    interrupts = fake.proc / "interrupts"
    interrupts.write_text(
        "   0:  64  IR-IO-APIC   2-edge  timer\n  27:  5  IR-PCI-MSIX-0000:00:1e.0  1-edge  virtio0\n"
    )
    only("isolated-msi", State.OK)
    interrupts.write_text("   0:  64  IO-APIC   2-edge  timer\n  27:  5  PCI-MSIX-0000:00:1e.0  1-edge  virtio0\n")
    fake.file("module/iommufd/parameters/allow_unsafe_interrupts", "N")
    assert "allow_unsafe_interrupts" in only("isolated-msi", State.MISSING).fix
    fake.file("module/iommufd/parameters/allow_unsafe_interrupts", "Y")
    only("isolated-msi", State.WARNING)


def test_memory_that_firmware_keeps(fake: FakeSysfs) -> None:
    fake.pci("0000:00:01.0", group=1)
    fake.pci("0000:00:02.0", group=1)
    regions = "kernel/iommu_groups/1/reserved_regions"
    fake.file(regions, "0x0000000000001000 0x0000000000001fff direct-relaxable\n0xfee00000 0xfeefffff msi")
    only("reserved", State.OK)
    fake.file(regions, "0x000000007a000000 0x000000007cffffff direct\n0xfee00000 0xfeefffff msi")
    finding = only("reserved", State.WARNING)
    assert finding.devices == ("0000:00:01.0", "0000:00:02.0")
    assert "0x7a000000..0x7cffffff (direct)" in finding.evidence


@pytest.mark.parametrize(
    ("cap", "bits", "physical", "state"),
    [
        ("d2008c222f0606", 48, 40, State.OK),  # QEMU's with aw-bits=48
        ("d2008c22260206", 39, 40, State.WARNING),  # and by default
        ("1c0000c40660462", 39, 39, State.OK),  # a client processor's
        ("8d2078c106f0466", 48, 46, State.OK),  # a server's: levels of 48 bits only
    ],
)
def test_address_width(fake: FakeSysfs, cap: str, bits: int, physical: int, state: State) -> None:
    assert found("address-width") == []
    fake.file("class/iommu/dmar0/intel-iommu/cap", cap)
    (fake.proc / "cpuinfo").write_text(f"model name : x\naddress sizes\t: {physical} bits physical, 48 bits virtual\n")
    finding = only("address-width", state)
    assert f"dmar0: {bits} bits" in finding.evidence
    assert ("aw-bits" in finding.fix) == (state is State.WARNING)


def test_memory_that_may_be_locked(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "has_capability", lambda number: False)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8 << 20, 16 << 20))
    finding = only("memlock", State.WARNING)
    assert "8 MiB" in finding.summary
    assert "memlock" in finding.fix
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    only("memlock", State.OK)


def test_permissions(fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("permissions", tmp_path) == []
    node = tmp_path / "iommu"
    node.touch(0o600)
    only("permissions", State.OK, tmp_path)
    # Root may open anything.
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    finding = only("permissions", State.MISSING, tmp_path)
    assert str(node) in finding.summary
    assert "mode 0600" in finding.evidence
    assert 'KERNEL=="iommu"' in finding.fix


def test_node_of_a_device_without_an_iommu(fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a capability, whatever the mode: no rule of udev's gives that."""
    node = tmp_path / "noiommu-vfio0"
    node.touch(0o600)
    fake.pci("0000:00:01.0", group=0, driver="vfio-pci", cdev=0, noiommu=True)
    device = replace(list_devices()[0], vfio_cdev=str(node))
    monkeypatch.setattr(device_checks, "has_capability", lambda _: False)
    for may_open in (True, False):
        monkeypatch.setattr(os, "access", lambda *_, may_open=may_open, **__: may_open)
        (finding,) = device_checks.permissions(Machine((device,), (), tmp_path))
        assert (finding.state, finding.devices) == (State.MISSING, ("0000:00:01.0",))
        assert "CAP_SYS_RAWIO" in finding.evidence
        assert "udev" not in finding.fix
        assert ("mode 0600" in finding.evidence) is not may_open


def test_node_that_is_missing(fake: FakeSysfs) -> None:
    fake.pci("0000:00:01.0", group=1, driver="vfio-pci", cdev=987654)
    assert only("permissions", State.MISSING).devices == ("0000:00:01.0",)


def test_devices_without_power(fake: FakeSysfs) -> None:
    fake.file("module/vfio_pci/parameters/disable_idle_d3", "N")
    fake.pci("0000:00:01.0", group=1, driver="vfio-pci", cdev=0, power_state="D0", d3cold_allowed="0")
    fake.pci("0000:00:02.0", group=2, driver="nvme", power_state="D0", d3cold_allowed="1")
    fake.pci("0000:00:03.0", group=3, class_code=0x060400, power_state="D3cold", d3cold_allowed="1")
    only("d3cold", State.OK)
    fake.pci("0000:00:04.0", group=4, driver="vfio-pci", cdev=1, power_state="D0", d3cold_allowed="1")
    assert only("d3cold", State.WARNING).devices == ("0000:00:04.0",)
    fake.file("module/vfio_pci/parameters/disable_idle_d3", "Y")
    only("d3cold", State.OK)
    fake.pci("0000:00:05.0", group=5, power_state="D3cold")
    assert only("d3cold", State.WARNING).devices == ("0000:00:05.0",)


def test_devices_without_reset(fake: FakeSysfs) -> None:
    fake.pci("0000:00:01.0", group=1, reset_method="flr bus")
    fake.pci("0000:00:02.0", group=2, class_code=0x060400)
    fake.pci("0000:00:03.0")
    fake.pci("0000:00:00.0", group=0, class_code=0x060000)
    only("reset", State.OK)
    fake.pci("0000:00:04.0", group=4)
    fake.pci("0000:00:05.0", group=5, reset_method="")
    assert only("reset", State.WARNING).devices == ("0000:00:04.0", "0000:00:05.0")


def test_group_of_host_and_passthrough_devices(fake: FakeSysfs) -> None:
    fake.pci("0000:00:01.0", group=1, driver="vfio-pci", cdev=0)
    fake.pci("0000:00:02.0", group=1)
    fake.pci("0000:00:03.0", group=3, driver="nvme")
    only("mixed-group", State.OK)
    fake.pci("0000:00:04.0", group=1, driver="snd_hda_intel")
    finding = only("mixed-group", State.WARNING)
    assert "0000:00:04.0 (snd_hda_intel)" in finding.evidence
    assert "pyiommufd claim 0000:00:01.0" in finding.fix


def test_modules_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.uname().release
    folder.mkdir()
    (folder / "modules.dep").write_text(
        "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/x.ko\nkernel/drivers/vfio/vfio.ko:\n"
    )
    monkeypatch.setattr(sysfs, "MODULES", tmp_path)
    assert drivers.module_file("vfio_pci") == "kernel/drivers/vfio/pci/vfio-pci.ko.xz"
    assert drivers.module_file("vfio-pci") == "kernel/drivers/vfio/pci/vfio-pci.ko.xz"
    assert drivers.module_file("x") is None


def test_this_machine() -> None:
    """Whatever this machine is: every check that has something to look at says something, once each where it is ok."""
    findings = readiness()
    assert {"iommu", "iommufd", "cdev", "vfio-pci", "memlock", "d3cold"} <= {finding.check for finding in findings}
    for finding in findings:
        assert finding.summary
        assert bool(finding.fix) == (finding.state is not State.OK) or finding.state is State.UNKNOWN
