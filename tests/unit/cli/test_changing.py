"""The changing commands where nothing is changed: dry runs, refusals, usage, signals."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pyiommufd import Refusal
from pyiommufd.cli.changing import ended_by_signals, failed
from pyiommufd.cli.group import cli
from pyiommufd.errors import ClaimError
from pyiommufd.host import uses
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimRecord, ClaimState
from pyiommufd.host.persistent import boot_unit, claim_file, environment
from tests.fake_sysfs import FakeSysfs


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


@pytest.fixture
def machine(fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    """A group of two behind a bridge, one of them able to have virtual functions."""
    monkeypatch.setattr(journal, "RUN", tmp_path / "run")
    monkeypatch.setattr(claim_file, "FOLDER", tmp_path / "claims.d")
    monkeypatch.setattr(boot_unit, "FOLDER", tmp_path / "system")
    (fake.root / "bus/pci/drivers/vfio-pci").mkdir()
    fake.pci("0000:00:01.0", group=1, driver="pcieport", class_code=0x060400)
    fake.pci("0000:01:00.0", parent="0000:00:01.0", group=2, driver="igb", sriov_totalvfs="7", sriov_numvfs="0")
    fake.pci("0000:01:00.1", parent="0000:00:01.0", group=2, ids=(0x1234, 0x0001))
    return fake


STEPS = [
    "0000:01:00.0: set driver_override to vfio-pci",
    "0000:01:00.0: unbind from igb",
    "0000:01:00.0: bind to vfio-pci",
    "0000:01:00.1: set driver_override to vfio-pci",
    "0000:01:00.1: bind to vfio-pci",
]


def test_plan_in_words(machine: FakeSysfs) -> None:
    lines = run("plan", "01:00.1").stdout.splitlines()
    assert lines[:3] == [
        "group 2:",
        "  0000:01:00.0: igb -> vfio-pci  (companion)",
        "  0000:01:00.1: no driver -> vfio-pci",
    ]
    start = lines.index("a claim takes these steps:") + 1
    assert lines[start : start + 5] == [f"  {step}" for step in STEPS]
    start = lines.index("to undo them by hand, as root:") + 1
    assert lines[start] == "  echo 0000:01:00.1 > /sys/bus/pci/drivers/vfio-pci/unbind"
    assert "  echo 0000:01:00.0 > /sys/bus/pci/drivers/igb/bind" in lines[start:]


def test_plan_as_json(machine: FakeSysfs) -> None:
    plan = json.loads(run("plan", "01:00.1", "--json").stdout)
    assert plan["moves"] == [
        {"device": "0000:01:00.0", "before": "igb", "after": "vfio-pci", "virtual_functions": [], "below": []},
        {"device": "0000:01:00.1", "before": None, "after": "vfio-pci", "virtual_functions": [], "below": []},
    ]
    assert (plan["devices"], plan["groups"], plan["companions"]) == (["0000:01:00.1"], [2], ["0000:01:00.0"])
    assert plan["steps"][1] == {"device": "0000:01:00.0", "action": "unbind", "value": "igb"}
    assert not plan["refused"]


def test_plan_of_what_others_go_with(machine: FakeSysfs) -> None:
    machine.vmd()
    lines = run("plan", "0000:00:0e.0").stdout.splitlines()
    assert lines[2] == "    10000:00:01.0: pcieport -> gone, with its parent 0000:00:0e.0  (companion)"
    plan = json.loads(run("plan", "0000:00:0e.0", "--json").stdout)
    assert [move["below"] for move in plan["moves"]] == [["10000:00:01.0", "10000:01:00.0"]]
    assert plan["companions"] == ["10000:00:01.0", "10000:01:00.0"]
    assert "claim 0000:00:0e.0" in run("plan", "10000:01:00.0", status=1).output


@pytest.mark.parametrize("name", ["eth1", "/sys/class/net/eth1"])
@pytest.mark.parametrize(
    "command",
    ["claim", "show", "vfs", "release", "plan", "rebind", "holders", "run --print", "explain bind EPERM", "caps"],
)
def test_name_that_a_claim_may_have_taken_away(machine: FakeSysfs, command: str, name: str) -> None:
    status = 125 if command.startswith("run") else 1
    said = "what is claimed has no interface and no disk, and goes by its address: pyiommufd claims lists it\n"
    assert said not in run(*command.split(), name, status=status).stderr
    record = ClaimRecord.begin([2], ["0000:01:00.0"])
    record.state = ClaimState.KEPT
    with journal.locked():
        journal.write(record)
    assert run(*command.split(), name, status=status).stderr.endswith(f"\n{said}")
    assert said not in run(*command.split(), "/sys", status=status).stderr


@pytest.fixture
def mounted(machine: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusals(snapshot: object, devices: Any) -> tuple[Refusal, ...]:
        used = [device.name for device in devices if device.name == "0000:01:00.0"]
        return tuple(Refusal(name, "mounted", "it holds /home") for name in used)

    monkeypatch.setattr(uses, "refusals_by", refusals)


@pytest.mark.usefixtures("mounted")
def test_refusals_end_plan_and_dry_run_alike() -> None:
    result = run("plan", "01:00.1", status=1)
    assert result.stdout.endswith(
        "it would be refused:\n  0000:01:00.0: it holds /home [mounted]\n  to override: --force mounted\n"
    )
    assert json.loads(run("plan", "01:00.1", "--json", status=1).stdout)["refusals"] == [
        {"device": "0000:01:00.0", "kind": "mounted", "reason": "it holds /home", "fix": ""}
    ]
    result = run("claim", "01:00.1", "--dry-run", status=1)
    assert result.stdout == ""
    assert "0000:01:00.0: it holds /home [mounted]" in result.stderr


@pytest.mark.usefixtures("mounted")
def test_force_goes_ahead_and_says_in_spite_of_what() -> None:
    result = run("claim", "01:00.1", "--force", "mounted", "--dry-run")
    assert result.stdout.splitlines() == STEPS
    assert result.stderr == "forced: 0000:01:00.0: it holds /home [mounted]\n"
    assert "forced:\n  0000:01:00.0: it holds /home [mounted]" in run("plan", "01:00.1", "--force", "mounted").stdout
    run("plan", "01:00.1", "--force", "swap", status=1)


def test_persistent_claim_by_what_others_can_write(machine: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "writable_by_others", lambda places: [f"/home/{name}" for name in "abcde"])
    for arguments in (["--dry-run"], []):
        result = run("claim", "01:00.0", "--persist", *arguments, status=1)
        assert result.stdout == ""
        assert "change what root runs at each boot: /home/a, /home/b, /home/c and 2 more; install" in result.stderr
    assert journal.records() == []
    assert claim_file.files() == []


def test_dry_run_of_a_persistent_claim(machine: FakeSysfs) -> None:
    lines = run("claim", "01:00.0", "01:00.1", "--persist", "--user", "root", "--dry-run").stdout.splitlines()
    assert lines == [
        *STEPS,
        "/dev/iommu: let root open it",
        "0000:01:00.0: let root open it",
        "0000:01:00.1: let root open it",
        *([f"{boot_unit.FOLDER}/pyiommufd.service: write and enable"] if boot_unit.has_systemd() else []),
        f"{claim_file.FOLDER}/0000:01:00.0.toml: write",
    ]
    assert not claim_file.FOLDER.exists()
    assert not journal.RUN.exists()


def test_nothing_to_give_back(machine: FakeSysfs) -> None:
    for command in (["release", "--all"], ["recover"]):
        for arguments in ([*command, "--dry-run"], command):
            assert run(*arguments).stdout == ""
            assert run(*arguments).stderr.startswith("none: ")
    assert "--all" in run("release", status=2).stderr
    assert "--all" in run("release", "--all", "01:00.0", status=2).stderr
    assert "no kept claim has 0000:01:00.0" in run("release", "01:00.0", status=1).stderr


def test_virtual_functions(machine: FakeSysfs) -> None:
    assert run("vfs", "01:00.0").stdout == "0000:01:00.0 has 0 of 7 virtual functions\n"
    assert json.loads(run("vfs", "01:00.0", "--json").stdout) == {
        "device": "0000:01:00.0",
        "total": 7,
        "count": 0,
        "devices": [],
    }
    assert run("vfs", "01:00.0", "3", "--dry-run").stdout == "0000:01:00.0: set sriov_numvfs to 3\n"
    assert run("vfs", "01:00.0", "0", "--dry-run").stdout == ""
    assert "has 7 virtual functions at most" in run("vfs", "01:00.0", "8", status=1).stderr
    assert "has no SR-IOV" in run("vfs", "01:00.1").stdout


def test_dry_run_says_why_virtual_functions_would_not_go_away(machine: FakeSysfs) -> None:
    function = machine.pci("0000:01:10.0", group=3, driver="vfio-pci", cdev=0)
    (machine.root / "bus/pci/devices/0000:01:00.0/virtfn0").symlink_to(function)
    entry = ClaimRecord.begin([3], ["0000:01:10.0"])
    entry.state = ClaimState.KEPT
    journal.RUN.mkdir()
    journal.write(entry)
    result = run("vfs", "01:00.0", "0", "--dry-run", status=1)
    assert result.stdout == "0000:01:00.0: set sriov_numvfs to 0\n"
    assert "0000:01:10.0" in result.stderr
    assert "claimed already" in result.stderr


def test_every_kind_can_be_forced_but_a_claim_of_somebody_else(machine: FakeSysfs) -> None:
    assert {*uses.FORCIBLE, "claimed"} == set(uses.KINDS)
    run("claim", "01:00.0", "--force", "claimed", "--dry-run", status=2)
    text = " ".join(run("claim", "--help").output.split())
    assert all(kind in text for kind in uses.FORCIBLE)


@pytest.mark.parametrize("command", ["claim", "release", "recover", "vfs"])
def test_every_changing_command_has_a_dry_run(command: str) -> None:
    with click.Context(cli) as context:
        found = cli.get_command(context, command)
    assert found is not None
    assert "--dry-run" in {option for param in found.params for option in param.opts}


@pytest.fixture
def heeded() -> Iterator[None]:
    """All of the signals have the action of a program that has just been started."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_command(number: signal.Signals, heeded: None, capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(SystemExit) as caught, ended_by_signals():
        signal.raise_signal(number)
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("pyiommufd: interrupted by SIG")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_signal_in_the_middle_says_what_became_of_it(heeded: None, capsys: pytest.CaptureFixture[str]) -> None:
    @contextlib.contextmanager
    def rolled_back() -> Iterator[None]:
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit), ended_by_signals(), rolled_back():
        raise ClaimError("rolled back")
    assert capsys.readouterr().err == "pyiommufd: rolled back\n"


def test_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_was_added_to_a_failure_is_said() -> None:
    error = ClaimError("it failed")
    error.add_note("and more")
    assert failed(error) == "it failed\nand more"
