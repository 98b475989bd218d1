"""The changing commands on a real kernel: what they say is what they do, and all of it can be taken back."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pyiommufd import IOMMUFD, ClaimRefusedError, DeviceFile, HostDevice, plan_claim
from pyiommufd.cli.group import cli
from pyiommufd.cli.output import ReadingCommand
from pyiommufd.host import drivers
from pyiommufd.host.claims import access, journal
from pyiommufd.host.claims.at_boot import plan_again
from pyiommufd.host.claims.record import ClaimState
from pyiommufd.host.persistent import boot_unit, claim_file
from tests import version_1
from tests.completions import completions
from tests.guest.types import DriverState, ReadDriverState

NOBODY = 65534
IOMMU = Path("/dev/iommu")
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all")
SYSTEMD = Path("/run/systemd/system")

USES = """
import sys
from pyiommufd import IOMMUFD, DMABuffer

with IOMMUFD() as iommufd, iommufd.bind(sys.argv[1]) as device:
    ioas = iommufd.alloc_ioas()
    device.attach(ioas)
    buffer = DMABuffer(4096)
    mapping = ioas.map(buffer, iova=0x100000)
    print("used")
    mapping.unmap()
    device.detach()
    buffer.close()
"""


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def dry_and_real(*arguments: str) -> list[str]:
    """What a command prints with --dry-run, which is what it prints, and does, without."""
    dry = run(*arguments, "--dry-run").stdout
    assert run(*arguments).stdout == dry
    return dry.splitlines()


@pytest.fixture(autouse=True)
def as_before(driver_state: ReadDriverState) -> Iterator[DriverState]:
    """Every test leaves drivers, nodes, records and files as they were."""
    before, mode = driver_state(), IOMMU.stat().st_mode
    SYSTEMD.mkdir(parents=True, exist_ok=True)
    yield before
    shutil.rmtree(SYSTEMD)
    assert driver_state() == before
    assert IOMMU.stat().st_mode == mode
    assert access.granted(IOMMU, NOBODY) is None
    assert journal.records() == []
    assert claim_file.files() == []
    assert not boot_unit.file().exists()
    assert not boot_unit.link().is_symlink()


def test_claim_lasts_until_it_is_released(
    first: HostDevice, peer: HostDevice, neighbour: HostDevice, as_before: DriverState, driver_state: ReadDriverState
) -> None:
    plan = json.loads(run("plan", first.name, "--json").stdout)
    steps = dry_and_real("claim", first.name)
    assert len(steps) == len(plan["steps"]) == 7
    for line, step in zip(steps, plan["steps"], strict=True):
        assert line.startswith(f"{step['device']}: ")
        assert (step["value"] or "") in line
    for device in (first, peer, neighbour):
        assert driver_state()[device.name] == ("vfio-pci", "vfio-pci")
    (entry,) = journal.records()
    assert entry.state is ClaimState.KEPT
    # Whole: recover has nothing to do.
    assert dry_and_real("recover") == []
    refused = run("claim", peer.name, status=1)
    assert "claimed already" in refused.stderr
    assert refused.stdout == ""
    # By any of its members.
    assert len(dry_and_real("release", peer.name)) == 10
    assert driver_state() == as_before
    assert "no kept claim has" in run("release", peer.name, status=1).stderr
    assert dry_and_real("release", "--all") == []


@pytest.mark.long
def test_driver_that_is_named_is_kept(alone: HostDevice, as_before: DriverState, driver_state: ReadDriverState) -> None:
    plan = json.loads(run("plan", alone.name, "--driver", "vfio_pci", "--json").stdout)
    assert plan["moves"][0]["after"] == "vfio-pci"
    assert len(dry_and_real("claim", alone.name, "--driver", "vfio_pci", "--persist")) == 4
    assert driver_state()[alone.name] == ("vfio-pci", "vfio-pci")
    (file,) = claim_file.files()
    assert claim_file.read(file).driver == "vfio_pci"
    # Already on the driver that is named.
    assert plan_claim(alone, driver="vfio_pci").steps == ()
    with pytest.raises(ClaimRefusedError, match="claimed already"):
        plan_again(claim_file.read(file))
    run("release", alone.name)
    assert driver_state() == as_before


def test_undo_commands_undo_it(first: HostDevice, as_before: DriverState, driver_state: ReadDriverState) -> None:
    """By hand, as `plan` says; the record is then of a claim that has nothing left to give back."""
    undo = json.loads(run("plan", first.name, "--json").stdout)["undo"]
    run("claim", first.name)
    assert driver_state() != as_before
    subprocess.run(["sh", "-e", "-c", "\n".join(undo)], check=True)
    assert driver_state() == as_before
    assert dry_and_real("release", first.name) == []


def test_keys_of_plan_are_those_documented(first: HostDevice) -> None:
    with click.Context(cli) as context:
        command = cli.get_command(context, "plan")
    assert isinstance(command, ReadingCommand)
    plan = json.loads(run("plan", first.name, "--json").stdout)
    assert set(plan) == {key for key in command.json_keys if "." not in key}
    for name in ("moves", "steps"):
        for each in plan[name]:
            assert {f"{name}.{key}" for key in each} == {key for key in command.json_keys if key.startswith(f"{name}.")}
    assert plan["refused"] is False


@pytest.mark.long
def test_everything_that_a_claim_can_have(
    first: HostDevice, peer: HostDevice, neighbour: HostDevice, as_before: DriverState, driver_state: ReadDriverState
) -> None:
    steps = dry_and_real("claim", first.name, "--persist", "--user", "nobody")
    names = [first.name, peer.name, neighbour.name]
    assert steps[7:] == [
        f"{IOMMU}: let nobody open it",
        f"{first.name}: let nobody open it",
        f"{boot_unit.file()}: write and enable",
        f"{claim_file.FOLDER}/{first.name}.toml: write",
    ]
    assert boot_unit.is_installed()
    (file,) = claim_file.files()
    claim = claim_file.read(file)
    assert {identity.name for identity in (*claim.wanted, *claim.companions)} == set(names)
    # What the unit runs: it is there already.
    assert dry_and_real("claim", "--persistent") == []
    back = dry_and_real("release", first.name)
    assert back[:3] == [
        f"{file}: remove",
        f"{IOMMU}: no longer let nobody open it",
        f"{first.name}: no longer let nobody open it",
    ]
    assert back[-1] == f"{boot_unit.file()}: disable and remove"
    assert driver_state() == as_before


@pytest.mark.long
def test_environment_of_a_user_is_not_run_at_boot(alone: HostDevice, as_before: DriverState) -> None:
    """As the user has made it: this one's interpreter and packages, in a folder that is the user's."""
    home = Path("/home/of-a-user")
    try:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], check=True)
        (packages,) = home.glob("venv/lib/python*/site-packages")
        (packages / "all.pth").write_text("\n".join(path for path in sys.path if Path(path).is_dir()))
        for path in (home, *home.rglob("*")):
            os.lchown(path, 1000, 1000)
        done = subprocess.run(
            [home / "venv/bin/python", "-m", "pyiommufd.cli", "claim", "--persist", alone.name],
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert f"each boot: {home} (belongs to uid 1000)" in done.stderr
        assert "run pyiommufd claim --persist from there" in done.stderr
        assert alone.refreshed().driver is None
    finally:
        run("release", "--all")
        shutil.rmtree(home, ignore_errors=True)


def boot(*arguments: str) -> Callable[[], subprocess.CompletedProcess[str]]:
    """Have a claim on record, and the machine as after a boot: nothing in /run, no device claimed.

    Args:
        arguments: What to claim.

    Returns:
        What runs the very line of the unit, with its capabilities alone.
    """
    run("claim", *arguments, "--persist")
    unit = dict(line.split("=", 1) for line in boot_unit.file().read_text().splitlines() if "=" in line)
    (file,) = claim_file.files()
    kept = file.read_bytes()
    run("release", "--all")
    file.write_bytes(kept)
    boot_unit.install()
    assert unit["NoNewPrivileges"] == "yes"
    capabilities = "".join(f",+{name.removeprefix('CAP_').lower()}" for name in unit["CapabilityBoundingSet"].split())
    command = ["setpriv", "--no-new-privs", f"--bounding-set=-all{capabilities}", "sh", "-c", unit["ExecStart"]]
    return lambda: subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


@pytest.mark.long
def test_unit_runs_this_command(alone: HostDevice) -> None:
    run_unit = boot(alone.name, "--user", "nobody")
    (file,) = claim_file.files()
    os.chown(IOMMU, NOBODY, -1)  # as a rule of udev's may
    try:
        done = run_unit()
        assert (done.returncode, done.stderr) == (0, f"{file}: claimed: {alone.name}\n")
        claimed = alone.refreshed()
        assert claimed.driver == "vfio-pci"
        assert access.granted(IOMMU, NOBODY) == access.granted(Path(claimed.vfio_cdev or ""), NOBODY) == 6
        assert run("claim", "--persistent").stderr == f"{file}: claimed already: {alone.name}\n"
    finally:
        os.chown(IOMMU, 0, -1)
        run("release", "--all")


@pytest.mark.long
def test_unit_sees_what_others_have_open(alone: HostDevice) -> None:
    run_unit = boot(alone.name)
    program = "import time; print(flush=True); time.sleep(3600)"
    with (alone.sys_path / "resource0").open("rb") as registers:
        command = [*AS_NOBODY, sys.executable, "-I", "-S", "-c", program]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[registers.fileno()])
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        done = run_unit()
        process.kill()
    run("release", "--all")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"pid {process.pid} " in done.stderr
    assert "[held]" in done.stderr


@pytest.mark.long
def test_persistent_claim_that_is_refused_at_boot(first: HostDevice, alone: HostDevice) -> None:
    """The one is taken by somebody else by then: nothing of it is done, and the other is made all the same."""
    run("claim", first.name, "--persist")
    run("claim", alone.name, "--persist", "--user", "nobody")
    kept = {file: file.read_bytes() for file in claim_file.files()}
    run("release", "--all")
    for file, content in kept.items():
        file.write_bytes(content)
    file = claim_file.FOLDER / f"{alone.name}.toml"
    file.write_text(file.read_text().replace('revision = "10"', 'revision = "11"'))
    dry = run("claim", "--persistent", "--dry-run", status=1)
    real = run("claim", "--persistent", status=1)
    assert real.stdout == dry.stdout
    assert f"{file}: nothing is done: {alone.name}" in real.stderr
    assert "no device has its ids" in real.stderr
    assert alone.refreshed().driver is None
    assert first.refreshed().driver == "vfio-pci"
    # It goes with the others, whatever is in it, and whether or not there is such a device.
    assert f"{file}: remove" in dry_and_real("release", "--all")


@pytest.mark.long
def test_file_that_is_none_hinders_no_other(alone: HostDevice) -> None:
    run("claim", alone.name, "--persist")
    broken = claim_file.FOLDER / "broken.toml"
    broken.write_text("version = 0\n")
    result = run("claim", "--persistent", status=1)
    assert "broken.toml is not a persistent claim" in result.stderr
    assert "claimed already" in result.stderr
    assert "broken.toml is not a persistent claim" in run("release", "--all", status=1).stderr
    assert claim_file.files() == [broken]
    assert dry_and_real("release", "broken")[0] == f"{broken}: remove"


@pytest.mark.long
def test_user_may_use_the_device_while_it_is_claimed(alone: HostDevice, first: HostDevice) -> None:
    def use() -> subprocess.CompletedProcess[str]:
        command = [*AS_NOBODY, sys.executable, "-c", USES, alone.name]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert IOMMU.stat().st_mode & 0o777 == 0o660
    claimed = run("claim", alone.name, "--user", "nobody")
    assert "nobody can map at most" in claimed.stderr
    command = [*AS_NOBODY, sys.executable, "-m", "pyiommufd.cli", "plan", alone.name]
    planned = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"whether a claim has {alone.name} is not seen: run it, or pyiommufd claims, as root" in planned.stderr
    used = use()
    assert (used.returncode, used.stdout) == (0, "used\n"), used.stderr
    # A second claim for the same user, and the end of the first: the user keeps what the second needs.
    run("claim", first.name, "--user", str(NOBODY))
    back = dry_and_real("release", first.name)
    assert f"{IOMMU}: no longer let nobody open it" not in back
    assert use().stdout == "used\n"
    assert f"{IOMMU}: no longer let nobody open it" in dry_and_real("release", alone.name)
    refused = use()
    assert refused.returncode == 1
    assert "/dev/iommu" in refused.stderr


def test_entry_of_an_administrator_stays(alone: HostDevice) -> None:
    access.grant(IOMMU, NOBODY, 4)
    try:
        run("claim", alone.name, "--user", "nobody")
        assert access.granted(IOMMU, NOBODY) == 6
        run("release", alone.name)
        assert access.granted(IOMMU, NOBODY) == 4
    finally:
        access.grant(IOMMU, NOBODY, None)


def test_node_that_is_not_there_fails_the_whole_claim(
    first: HostDevice, as_before: DriverState, driver_state: ReadDriverState
) -> None:
    IOMMU.rename("/dev/elsewhere")
    try:
        result = run("claim", first.name, "--persist", "--user", "nobody", status=1)
        assert "there is no node /dev/iommu that nobody could be given" in result.stderr
        assert driver_state() == as_before
    finally:
        Path("/dev/elsewhere").rename(IOMMU)


@pytest.mark.long
def test_file_that_cannot_be_written_fails_the_whole_claim(
    first: HostDevice, as_before: DriverState, driver_state: ReadDriverState
) -> None:
    claim_file.FOLDER.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", claim_file.FOLDER], check=True)
    try:
        result = run("claim", first.name, "--persist", "--user", "nobody", status=1)
    finally:
        subprocess.run(["umount", claim_file.FOLDER], check=True)
    assert f"{first.name}.toml: write: Read-only file system" in result.stderr
    assert driver_state() == as_before


def test_release_of_a_held_device_says_who_and_can_be_repeated(alone: HostDevice, as_before: DriverState) -> None:
    run("claim", alone.name, "--persist", "--user", "nobody")
    with DeviceFile(alone) as file:
        failed = run("release", alone.name, status=1)
        assert "nothing was changed" in failed.stderr
        assert f"{alone.name} stays as it is: this process (pid {os.getpid()}) " in failed.stderr
        assert f"fd {file.fileno()}" in failed.stderr
        assert failed.stdout == ""
        assert len(claim_file.files()) == 1
        assert access.granted(IOMMU, NOBODY) == 6
    assert len(dry_and_real("release", alone.name)) == 7


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signal_undoes_a_claim(
    first: HostDevice, as_before: DriverState, driver_state: ReadDriverState, number: signal.Signals
) -> None:
    """Sent while the command waits to print its third step: the pipe that it prints to is full until then."""
    lines = run("claim", first.name, "--persist", "--dry-run").stdout.splitlines(keepends=True)
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    # Page by page: what is left of the one page takes two lines, and no third.
    os.write(writer, b"x" * (size - len("".join(lines[:2]))))
    command = [sys.executable, "-m", "tests.trusted", "claim", first.name, "--persist"]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        while first.refreshed().driver != "vfio-pci" and process.poll() is None:
            pass
        assert Path(f"/proc/{process.pid}").exists()
        process.send_signal(number)
        with open(reader, encoding="utf-8") as pipe:
            printed = pipe.read().lstrip("x")
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 1, said
    assert "rolled back: interrupted by " in said
    # It has come to the third or was about to.
    assert printed.startswith("".join(lines[:2]))
    assert lines[4] not in printed
    assert "unbind from vfio-pci" in printed
    assert driver_state() == as_before


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["claim"], 2),
        (["claim", "--persistent", "00:01.0"], 2),
        (["claim", "00:01.0", "--force", "everything"], 2),
        (["claim", "00:01.0", "--user", "no such user"], 2),
        (["claim", "00:1f.7"], 1),
        (["claim", "00:02.0"], 1),
        (["claim", "00:01.0", "--driver", "pcieport"], 1),
        (["claim", "00:01.0", "--driver", "no-such-driver"], 1),
        (["claim", "--persistent", "--driver", "vfio-pci"], 2),
        (["plan", "00:01.0", "--driver", "pci-stub"], 1),
        (["rebind"], 2),
        (["rebind", "00:1f.7"], 1),
        (["rebind", "00:01.0", "--force", "claimed"], 2),
        (["release", "00:1f.7"], 1),
        (["vfs", "00:01.0", "-1"], 2),
        (["vfs", "00:01.0", "2"], 1),
    ],
)
def test_status(arguments: list[str], status: int) -> None:
    result = run(*arguments, status=status)
    assert result.stdout == ""
    assert result.stderr


@pytest.mark.long
def test_who_is_not_root_is_told(alone: HostDevice) -> None:
    command = [*AS_NOBODY, sys.executable, "-m", "pyiommufd.cli", "claim", alone.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "takes root" in done.stderr
    assert alone.refreshed().driver is None


def test_virtual_functions_of_a_device_without(alone: HostDevice) -> None:
    shown: Any = json.loads(run("vfs", alone.name, "--json").stdout)
    assert shown == {"device": alone.name, "total": 0, "count": 0, "devices": []}
    assert "has no SR-IOV" in run("vfs", alone.name).stdout


def listed() -> list[dict[str, Any]]:
    """What `claims` has, which by its keys is as documented."""
    with click.Context(cli) as context:
        command = cli.get_command(context, "claims")
    assert isinstance(command, ReadingCommand)
    found: list[dict[str, Any]] = json.loads(run("claims", "--json").stdout)
    assert all(set(one) == set(command.json_keys) for one in found)
    return found


def test_fix_that_explain_prints_is_a_command_that_works(first: HostDevice, neighbour: HostDevice) -> None:
    drivers.load_driver("pci", "vfio-pci")
    drivers.set_driver_override(first, "vfio-pci")
    drivers.bind(first, "vfio-pci")
    try:
        lines = [line.strip() for line in run("explain", "bind", "EPERM", first.name).stdout.splitlines()]
        assert neighbour.name in lines[1]
        (command,) = (line for line in lines if line.startswith("fix: claim the group: pyiommufd "))
        run(*command.removeprefix("fix: claim the group: pyiommufd ").split())
        with IOMMUFD() as iommufd, iommufd.bind(first) as device:
            assert device.name == first.name
        run("release", first.name)
    finally:
        drivers.unbind(first)
        drivers.set_driver_override(first, None)


def test_claims_are_listed(first: HostDevice, neighbour: HostDevice, alone: HostDevice) -> None:
    assert run("claims").stderr == "none: nothing is claimed\n"
    before = datetime.datetime.now().astimezone()
    run("claim", first.name, "--persist", "--user", "nobody")
    kept = claim_file.files()[0]
    with plan_claim(alone).apply():
        ours, theirs = listed()
        since = datetime.datetime.fromisoformat(ours.pop("since"))
        assert before - datetime.timedelta(seconds=1) <= since <= datetime.datetime.now().astimezone()
        assert (ours["devices"], ours["groups"], ours["state"]) == ([first.name], [first.group_id], "kept")
        assert neighbour.name in ours["others"]
        assert (ours["pid"], ours["file"], ours["user"], ours["stuck"]) == (None, str(kept), "nobody", [])
        assert (theirs["devices"], theirs["state"], theirs["pid"]) == ([alone.name], "session", os.getpid())
        assert (theirs["file"], theirs["user"]) == (None, None)
        assert completions("pyiommufd release ") == [first.name]  # the other ends with its process
        assert completions("pyiommufd release --leave=") == [f"--leave={first.name}"]
        shown = run("claims").stdout.splitlines()
        assert shown[0].split() == ["DEVICES", "STATE", "PID", "SINCE", "AT", "BOOT", "USER"]
        assert [line.split()[0] for line in shown[1:3]] == [first.name, alone.name]
        assert shown[3:] == [f"{first.name}: took with it {' '.join(ours['others'])}"]
    drivers.unbind(first)
    assert listed()[0]["stuck"] == [f"{first.name} is on no driver by now"]
    content = kept.read_bytes()
    run("release", "--all")
    kept.write_bytes(content)
    (unmade,) = listed()
    assert (unmade["state"], unmade["devices"], unmade["since"]) == ("not made", [first.name], None)
    assert "pyiommufd claim --persistent" in unmade["stuck"][0]
    assert f"{first.name}: it has not been made" in run("claims").stdout
    (journal.RUN / "x.json").write_text("{}")
    (journal.RUN / "x.json").chmod(0o600)
    assert "x.json is not a record of a claim" in run("claims", status=1).stderr
    (journal.RUN / "x.json").unlink()
    run("release", first.name)


def test_claims_of_a_process_that_is_gone(alone: HostDevice) -> None:
    child = os.fork()
    if not child:
        plan_claim(alone).apply()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = listed()
    assert (left["state"], left["pid"]) == ("session", None)
    assert left["stuck"] == [f"its process is gone: pyiommufd release {alone.name} gives it back"]
    assert run("recover").stderr == f"given back: {alone.name}\n"
    assert listed() == []


@pytest.mark.long
def test_claim_of_the_version_before_is_released(
    first: HostDevice, alone: HostDevice, as_before: DriverState, driver_state: ReadDriverState
) -> None:
    run("claim", first.name, "--persist", "--user", "nobody")
    run("claim", alone.name)
    version_1.rewrite(journal.records()[0])
    assert [one["user"] for one in listed()] == ["nobody", None]
    assert dry_and_real("recover") == []
    assert len(dry_and_real("release", first.name)) == 11
    assert access.granted(IOMMU, NOBODY) is None
    assert claim_file.files() == []
    run("release", alone.name)
    assert driver_state() == as_before
