"""Commands that find nothing say so on standard error; nothing is on standard output, and nothing more with --json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyiommufd.cli import watch as watch_module
from pyiommufd.cli.group import cli
from pyiommufd.host.claims import journal
from pyiommufd.host.persistent import boot_unit, claim_file
from tests.fake_sysfs import FakeSysfs
from tests.unit.cli.test_watch import FakeMonitor

DEVICE = "0000:00:02.0"


@pytest.fixture(autouse=True)
def machine(fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    monkeypatch.setattr(journal, "RUN", tmp_path / "run")
    monkeypatch.setattr(claim_file, "FOLDER", tmp_path / "claims.d")
    monkeypatch.setattr(boot_unit, "FOLDER", tmp_path / "system")
    monkeypatch.setattr(watch_module, "Monitor", FakeMonitor)
    monkeypatch.setattr(FakeMonitor, "events", ())
    (fake.proc / "devices").write_text("511 vfio-dev\n")
    return fake


@pytest.fixture
def device(machine: FakeSysfs) -> None:
    machine.pci(DEVICE, group=2, driver="vfio-pci", cdev=0, sriov_totalvfs="7", sriov_numvfs="0")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["list", "--driver", "nvme"], "no device on nvme"),
        (["list", "--group", "3"], "no device in group 3"),
        (["list", "8086:", "--bus", "pci"], "no device on the bus pci, 8086:"),
        (["groups", "--shared"], "no group has several devices"),
        (["holders", DEVICE], f"no process that is seen holds {DEVICE}"),
        (["holders", "--group", DEVICE], f"no process that is seen holds a member of the group of {DEVICE}"),
        (["watch", "--timeout", "0"], "no event"),
        (["claims"], "nothing is claimed"),
        (["recover"], "no device was left behind"),
        (["recover", "--dry-run"], "no device was left behind"),
        (["release", "--all"], "no claim is kept, or made at boot"),
        (["release", "--all", "--dry-run"], "no claim is kept, or made at boot"),
        (["claim", "--persistent"], "no claim is on record for every boot"),
        (["claim", "--dry-run", "--force", "unseen", DEVICE], f"no step: on vfio already: {DEVICE}"),
        (["vfs", DEVICE, "0"], f"{DEVICE} has no virtual functions"),
        (["vfs", "--dry-run", DEVICE, "0"], f"no step: {DEVICE} has 0 already"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("device")
def test_none_is_said(arguments: list[str], what: str) -> None:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"none: {what}" in result.stderr.splitlines()


@pytest.mark.usefixtures("device")
def test_claim_of_what_stays_as_it_is_ends() -> None:
    """Nothing is given back of what was on vfio before, as mediated devices are."""
    for release in (["release", DEVICE], ["release", "--all"]):
        for arguments, said in (
            (["claim", "--force", "unseen", DEVICE], f"on vfio already, and claimed there: {DEVICE}"),
            ([*release, "--dry-run"], "none: no device to give back"),
            (release, f"no longer claimed, and left as it is: {DEVICE}"),
        ):
            result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
            assert (result.exit_code, result.stdout) == (0, ""), result.output
            assert said in result.stderr


@pytest.mark.parametrize(
    "arguments", [["list", "--driver", "nvme"], ["groups", "--shared"], ["holders", DEVICE], ["claims"]]
)
@pytest.mark.usefixtures("device")
def test_json_says_it_by_itself(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(result.stdout) == []
    assert "none:" not in result.stderr


def test_watch_says_that_it_watches() -> None:
    assert "watching pci; Ctrl-C ends it" in CliRunner().invoke(cli, ["watch", "--bus", "pci"]).stderr
    assert CliRunner().invoke(cli, ["watch", "--timeout", "0", "--json"]).output == ""


def test_no_device_at_all() -> None:
    for command in ("list", "topology"):
        result = CliRunner().invoke(cli, [command], catch_exceptions=False)
        assert (result.exit_code, result.stdout) == (0, "")
        assert "none: no device" in result.stderr.splitlines()
