"""`pyiommufd run` as far as it goes without devices."""

from __future__ import annotations

import pwd
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyiommufd.cli.group import cli
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimRecord, ClaimState
from tests.fake_sysfs import FakeSysfs

DEVICE = "0000:00:02.0"
UUID = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"


@pytest.fixture(autouse=True)
def machine(fake: FakeSysfs) -> FakeSysfs:
    """A device on a host driver with a driverless one in its group, and one that no IOMMU covers."""
    fake.pci(DEVICE, group=3, driver="e1000e")
    fake.pci("0000:00:02.1", group=3)
    fake.pci("0000:00:03.0")
    return fake


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["run", *arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "DEVICE"),
        (["--", "true"], "DEVICE"),
        ([DEVICE], "no VMM: pyiommufd run DEVICE... -- VMM ARGS"),
        ([DEVICE, "--"], "no VMM"),
        ([DEVICE, "--memlock", "8M", "--", "true"], "neither a number of MiB nor unlimited"),
        ([DEVICE, "--memlock", "99999999999999999999", "--", "true"], "at most 8796093022207 MiB, or unlimited"),
        ([DEVICE, "--memlock", "9" * 5000, "--", "true"], "Invalid value for '--memlock'"),
        ([DEVICE, "--option", "bus", "--", "qemu-kvm"], "KEY=VALUE"),
        ([DEVICE, "--vf-token", "x", "--", "true"], "Invalid value for '--vf-token': 'x' is not a UUID"),
        ([DEVICE, "--vf-token", UUID, "--", "cloud-hypervisor"], "Cloud Hypervisor has no option for a VF token"),
        ([DEVICE, "--vmm", "xen", "--", "true"], "cloud-hypervisor"),
        ([DEVICE, "--", "qemu-system-x86_64", "-daemonize"], "-daemonize: QEMU would continue"),
        ([DEVICE, "--option", "a=b", "--", "true"], "put them into its arguments"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    assert message in run(*arguments, status=2).output


def test_help_shows_both_halves() -> None:
    assert "run [OPTIONS] DEVICE... -- VMM [ARGS]..." in run("--help").output


@pytest.mark.parametrize("before", [[DEVICE, "--print"], ["--print", DEVICE]])
def test_print(before: list[str]) -> None:
    lines = run(*before, "--", "qemu-kvm", "--print", "-m", "1G").stdout.splitlines()
    assert lines[0] == f"# for a shell, once they are claimed (pyiommufd claim {DEVICE}):"
    assert lines[1].startswith("qemu-kvm --print -m 1G -object iommufd,id=iommufd0,fd=3 -device vfio-pci,id=vfio0,fd=4")
    assert lines[3] == '<hostdev mode="subsystem" type="pci" managed="no">'
    assert run(*before).stdout.splitlines() == lines[3:]


def test_print_keeps_what_changes_the_meaning() -> None:
    given = [DEVICE, "--print", "--force", "held", "--force", "unseen", "--user", "nobody", "--memlock", "64"]
    shown = run(*given, "--option", "bus=rp1", "--vmm", "qemu", "--", "wrapper", "-m", "1G").stdout.splitlines()
    claim = f"pyiommufd claim --force held --force unseen {DEVICE}"
    assert shown[0] == f"# for root's shell, once they are claimed ({claim}):"
    user = pwd.getpwnam("nobody")
    words = shlex.split(shown[1].partition(" 3<>")[0])
    assert words[words.index("prlimit") :][:9] == [
        "prlimit",
        f"--memlock={64 << 20}",
        "setpriv",
        f"--reuid={user.pw_uid}",
        f"--regid={user.pw_gid}",
        f"--groups={user.pw_gid}",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
    ]
    assert "USER=nobody" in words[: words.index("prlimit")]
    assert words[words.index("wrapper") :] == [
        *("wrapper", "-m", "1G", "-object", "iommufd,id=iommufd0,fd=3"),
        *("-device", "vfio-pci,id=vfio0,fd=4,iommufd=iommufd0,bus=rp1"),
    ]
    assert "prlimit --memlock=unlimited true" in run(DEVICE, "--print", "--memlock", "unlimited", "--", "true").stdout


@pytest.mark.parametrize(("way", "status"), [("--print", 0), ("--dry-run", 125)])
def test_claim_that_would_be_refused(way: str, status: int) -> None:
    said = run("0000:00:03.0", way, "--force", "unseen", "--vmm", "other", "--", "true", status=status).stderr
    title, reason, override = said.splitlines()[-3:]
    assert title.endswith(" would be refused:")
    assert reason.startswith("  0000:00:03.0: no IOMMU")
    assert override.startswith("  to override, once vfio's enable_unsafe_noiommu_mode is on (")
    assert "would be refused" not in run(DEVICE, way, "--force", "unseen", "--vmm", "other", "--", "true").stderr


@pytest.mark.parametrize("way", ["--print", "--dry-run"])
def test_no_monitor_gets_a_device_without_an_iommu(machine: FakeSysfs, way: str) -> None:
    """What a VM takes for physical addresses are not the machine's."""
    machine.file("module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")
    given = ["0000:00:03.0", way, "--force", "unseen"]
    for monitor in (["--", "qemu-kvm"], ["--", "cloud-hypervisor"], ["--vmm", "qemu", "--", "true"]):
        refused = run(*given, *monitor, status=125)
        assert "no IOMMU covers 0000:00:03.0: the VM's addresses would not be translated" in refused.stderr
        assert refused.stderr.endswith(": --vmm other --force noiommu\n")
        assert refused.stdout == ""
        assert run(*given, "--force", "noiommu", *monitor, status=125).stderr.endswith(": --vmm other\n")
    taken = run(*given, "--force", "noiommu", "--vmm", "other", "--", "true")
    assert "would not be translated" not in taken.stderr
    assert "hostdev" not in taken.stdout


def test_libvirt_gets_no_device_without_an_iommu(machine: FakeSysfs) -> None:
    machine.file("module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")
    refused = run("0000:00:03.0", "--print", "--force", "noiommu", status=125)
    assert (refused.stdout, "would not be translated" in refused.stderr) == ("", True)


@pytest.mark.parametrize("way", ["--print", "--dry-run"])
def test_program_that_is_not_known_is_told_how_it_gets_the_fds(way: str) -> None:
    said = run(DEVICE, way, "--force", "unseen", "--", "true").stderr
    assert "true is no monitor that is known by its name: it finds the numbers of its fds in PYIOMMUFD_FDS" in said
    assert "--vmm qemu" in said
    for known in (["--vmm", "other", "--", "true"], ["--", "true", "{device0}"], ["--vmm", "qemu", "--", "true"]):
        assert "known by its name" not in run(DEVICE, way, "--force", "unseen", *known).stderr


def test_devices_of_which_some_are_claimed(machine: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RUN", tmp_path / "run")
    machine.pci("0000:00:04.0", group=4, driver="vfio-pci", cdev=0)
    record = ClaimRecord.begin([4], ["0000:00:04.0"])
    record.state = ClaimState.KEPT
    with journal.locked():
        journal.write(record)
    said = run("0000:00:04.0", DEVICE, "--force", "unseen", "--", "true", status=125).stderr
    assert f"taken 0000:00:04.0, and not {DEVICE}: run takes devices that are all claimed so, or none" in said
    assert f"pyiommufd claim {DEVICE}, or pyiommufd release 0000:00:04.0" in said


def test_dry_run() -> None:
    shown = run(DEVICE, "--dry-run", "--", "sh", "{device0}").stdout.splitlines()
    there = ["load the driver vfio-pci", "set driver_override to vfio-pci", "unbind from e1000e", "bind to vfio-pci"]
    back = ["unbind from vfio-pci", "clear driver_override", "bind to e1000e"]
    middle = shown.index("sh 4")
    assert [line for line in shown[:middle] if DEVICE in line] == [f"{DEVICE}: {step}" for step in there]
    assert [line for line in shown[middle:] if DEVICE in line] == [f"{DEVICE}: {step}" for step in back]
    assert any("0000:00:02.1" in line for line in shown[:middle])


def test_program_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "file", "is no executable file")):
        for way in ([], ["--dry-run"]):
            assert f"{path} {message}" in run(DEVICE, *way, "--", str(path), status=125).output


@pytest.fixture
def function(machine: FakeSysfs) -> str:
    """A virtual function of a physical function on vfio-pci."""
    physical = machine.pci("0000:01:00.0", driver="vfio-pci", group=5, cdev=-1, sriov_totalvfs="2")
    virtual = machine.pci("0000:01:00.1", driver="vfio-pci", group=6, cdev=-1)
    machine.link(f"{virtual.relative_to(machine.root)}/physfn", physical)
    return virtual.name


@pytest.mark.parametrize("way", [["--print"], ["--dry-run"], []])
def test_vf_token_that_is_missing(function: str, way: list[str]) -> None:
    said = run(function, *way, "--", "env", status=125).output
    assert f"{function}: its physical function 0000:01:00.0 is on vfio-pci" in said
    assert "caps --vf-token UUID 0000:01:00.0" in said


def test_vf_token_is_shown(function: str) -> None:
    given = [DEVICE, function, "--vf-token", UUID]
    assert f"PYIOMMUFD_VF_TOKEN={UUID} env {UUID}" in run(*given, "--dry-run", "--", "env", "{vf-token}").stdout
    shown = run(*given, "--print", "--", "qemu-kvm")
    assert shown.stdout.splitlines()[1].count(f"fd=5,iommufd=iommufd0,vf-token={UUID}") == 1
    assert shown.stdout.count("vf-token") == 1
    assert "makes no use of a VF token with iommufd" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0000:00:09.0", "--", "true"], "0000:00:09.0"),
        (["0000:00:03.0", "--", "true"], "no IOMMU: this machine's one does not cover the device"),
        ([DEVICE, "--", "/nowhere/qemu-kvm"], "there is no program /nowhere/qemu-kvm"),
        ([DEVICE, "--user", "nobody-at-all", "--", "true"], "there is no user 'nobody-at-all'"),
        ([DEVICE, "--user", "4000000", "--", "true"], "no user '4000000' on record"),
        ([DEVICE, "--vf-token", UUID, "--", "true"], f"of {DEVICE} the kernel would refuse it; leave --vf-token out"),
    ],
)
def test_what_cannot_be_started(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in run(*arguments, status=125).output
