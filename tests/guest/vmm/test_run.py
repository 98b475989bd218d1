"""`pyiommufd run`: devices go to a program that binds them, and come back however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyiommufd import HostDevice, find_group, plan_claim, recover
from pyiommufd.host import drivers
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimState
from pyiommufd.host.holders import holders
from tests.guest.forked import run_cli
from tests.guest.types import DriverState, ReadDriverState
from tests.guest.vmm.conftest import RUN, STANDIN, Started, holders_of_anything, named
from tests.patience import patience, until

Start = Callable[..., Started]

INTERRUPTS = """
import os, signal

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
print("ready", flush=True)
signal.sigwait({signal.SIGINT})
# `run` passes signals on in the order of their numbers: what it makes of the first is here when this one is.
os.kill(os.getppid(), signal.SIGUSR1)
signal.sigwait({signal.SIGUSR1})
print("interrupts:", 1 + (signal.SIGINT in signal.sigpending()), flush=True)
"""

STEPS = [
    "set driver_override to vfio-pci",
    "unbind from virtio-pci",
    "bind to vfio-pci",
    "sh",
    "unbind from vfio-pci",
    "clear driver_override",
    "bind to virtio-pci",
    "set power/control to on",
]
"""What becomes of a device on a host driver around a run of ``sh``."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("whom", "number", "status"),
    [
        ("monitor", signal.SIGTERM, 115),
        ("monitor", signal.SIGKILL, 137),
        ("run", signal.SIGINT, 102),
        ("run", signal.SIGKILL, -9),
    ],
)
def test_devices_come_back(
    start: Start, first: HostDevice, neighbour: HostDevice, as_before: DriverState,
    driver_state: ReadDriverState, whom: str, number: signal.Signals, status: int,
) -> None:  # fmt: skip
    assert as_before[neighbour.name] == ("virtio-pci", None)
    run = start(first.name, "--", "fds", "wait")
    (pid,) = map(int, run.until("ready"))
    assert driver_state()[neighbour.name] == ("vfio-pci", "vfio-pci")
    # The monitor has the device, and nobody else: not even the one that opened it.
    assert {holder.pid for holder in holders(first.refreshed())} == {pid}
    assert all(f"/proc/{pid}/" in held for held in holders_of_anything())
    os.kill(pid if whom == "monitor" else run.process.pid, number)
    said = run.end()
    assert run.process.returncode == status
    if (whom, number) == ("run", signal.SIGKILL):
        # The monitor dies with it; what is on record is for `recover`.
        until(lambda: not Path(f"/proc/{pid}").exists() and not holders_of_anything())
        assert driver_state()[neighbour.name] == ("vfio-pci", "vfio-pci")
        assert neighbour.name in recover()
    else:
        assert f"pyiommufd run: {neighbour.name}: bind to virtio-pci" in said
        assert said[-1].startswith("pyiommufd run: given back: ")
    assert driver_state() == as_before
    assert holders_of_anything() == []
    with open("/dev/hwrng", "rb") as generator:
        assert len(generator.read(16)) == 16


@pytest.mark.long
def test_signals_are_the_monitors(start: Start, alone: HostDevice) -> None:
    run = start(alone.name, "--", "fds", "wait", "wait")
    (pid,) = run.until("ready")
    run.process.send_signal(signal.SIGUSR1)
    assert run.until("caught") == ["SIGUSR1"]
    assert run.until("ready") == [pid]
    run.process.send_signal(signal.SIGHUP)
    assert run.until("caught") == ["SIGHUP"]
    run.end()
    assert run.process.returncode == 110  # of the first


@pytest.mark.long
def test_signal_of_the_terminal_comes_once(alone: HostDevice, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole process group; `run` adds nothing to it."""
    program = tmp_path / "program"
    program.write_text(INTERRUPTS)
    code = "import pty, sys; pty.spawn(sys.argv[1:])"
    command = [sys.executable, "-c", code, *RUN, alone.name, "--", sys.executable, str(program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as terminal:
        assert terminal.stdin is not None
        assert terminal.stdout is not None
        count = ""
        for line in terminal.stdout:
            if line.strip() == "ready":
                terminal.stdin.write("\x03")
                terminal.stdin.flush()
            count = line.partition("interrupts:")[2].strip() or count  # after what the terminal echoes
    assert count == "1"


HUNG_UP = """
import os, pathlib, pty, sys

pid, terminal = pty.fork()
if not pid:
    os.execv(sys.argv[2], sys.argv[2:])
said = b""
while b"ready\\r\\n" not in said:  # the whole line: an end of the terminal in the middle of it fails the writer
    said += os.read(terminal, 4096)
os.close(terminal)  # as when the window is closed, or the connection breaks
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""

WAITS_FOR_HANGUP = """
import pathlib, signal, sys

# Blocked: a handler would wait for the end of a sleep that begins just after the signal has come.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
print("ready", flush=True)
signal.sigwait({signal.SIGHUP})
pathlib.Path(sys.argv[1]).write_text("SIGHUP")
sys.exit(7)
"""


@pytest.mark.long
def test_hangup_of_the_terminal_reaches_the_monitor(
    alone: HostDevice, tmp_path: Path, driver_state: ReadDriverState
) -> None:
    """The kernel tells the leader of the session alone, which is `run` where nothing is between it and the terminal."""
    before, marker, program = driver_state(), tmp_path / "marker", tmp_path / "program"
    program.write_text(WAITS_FOR_HANGUP)  # a file, as `run` says what it runs, and that is not to have the word in it
    monitor = [sys.executable, str(program), str(marker)]
    command = [sys.executable, "-c", HUNG_UP, "--", *RUN, alone.name, "--", *monitor]
    done = subprocess.run(command, check=False, timeout=patience(), stdin=subprocess.DEVNULL)
    assert marker.read_text() == "SIGHUP"
    assert done.returncode == 7
    assert driver_state() == before


@pytest.mark.long
def test_what_is_ignored_stays_ignored(alone: HostDevice, tmp_path: Path) -> None:
    """As by nohup, in `run` and in the monitor."""
    program = tmp_path / "program"
    program.write_text(IGNORED)
    command = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *RUN, alone.name, "--", sys.executable, str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        for _ in range(3):
            run.send_signal(signal.SIGHUP)
        run.send_signal(signal.SIGUSR1)
        assert run.stdout.read() == "SIGUSR1\n"
    assert run.returncode == 0


IGNORED = """
import signal

assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
print("SIGUSR1", flush=True)
"""


@pytest.mark.long
def test_fds_of_the_shell_are_the_monitors_as_well(alone: HostDevice) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe:
        program = [sys.executable, "-c", f"import os; os.write({writer}, b'by fd')"]
        subprocess.run([*RUN, alone.name, "--", *program], pass_fds=[writer], check=True, timeout=patience())
        os.close(writer)
        assert pipe.read() == b"by fd"


@pytest.mark.long
def test_exit_status_is_the_monitors(start: Start, alone: HostDevice) -> None:
    run = start(alone.name, "--", "fds", "dma", "exit=7")
    said = run.end()
    assert run.process.returncode == 7
    assert run.lines == [f"bound {alone.name}", "dma moved"]
    assert f"pyiommufd run: {alone.name}: bind to vfio-pci" in said
    assert said[-1] == f"pyiommufd run: given back: {alone.name}"


def test_what_cannot_be_started(alone: HostDevice, tmp_path: Path, driver_state: ReadDriverState) -> None:
    before = driver_state()
    (tmp_path / "broken").write_text("#!/nowhere/program\n")
    (tmp_path / "broken").chmod(0o755)
    for program, message in ((tmp_path / "none", "there is no program"), (tmp_path / "broken", "cannot start")):
        done = run_cli("run", alone.name, "--", str(program))
        assert done.returncode == 125
        assert f"{message} {program}" in done.stderr
        assert driver_state() == before


def test_limit_that_may_not_be_set_is_refused_before_anything_is_claimed(
    alone: HostDevice, driver_state: ReadDriverState
) -> None:
    """Without CAP_SYS_RESOURCE, by a hard limit of 8 MiB."""
    before = driver_state()
    drop = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
    limited = ["prlimit", f"--memlock={8 << 20}", *drop, *RUN, alone.name]
    for memlock in ("9", "unlimited"):
        for way in ([], ["--dry-run"]):
            command = [*limited, *way, "--memlock", memlock, "--", "true"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 125
            assert "is more than the 8 MiB that this process may set (ulimit -Hl)" in done.stderr
            assert len(done.stderr.splitlines()) == 1  # no step
    assert driver_state() == before
    subprocess.run([*limited, "--memlock", "8", "--", "true"], check=True)


def test_user_who_may_not_run_it_is_refused_before_anything_is_claimed(
    alone: HostDevice, tmp_path: Path, python_for_all: None
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    for way in ([], ["--dry-run"]):
        done = run_cli("run", *way, "--user", "nobody", alone.name, "--", str(program))
        assert done.returncode == 125
        assert done.stderr == f"pyiommufd run: cannot start as nobody: {program}: Permission denied\n"
        assert done.stdout == ""


@pytest.mark.long
def test_device_that_somebody_has_is_refused(start: Start, alone: HostDevice) -> None:
    run = start(alone.name, "--", "fds", "wait")
    (pid,) = run.until("ready")
    again = run_cli("run", alone.name, "--", "true")
    assert again.returncode == 125
    assert "claimed already" in again.stderr
    os.kill(int(pid), signal.SIGTERM)
    run.end()


@pytest.mark.long
def test_arguments_of_qemu(start: Start, first: HostDevice, peer: HostDevice, tmp_path: Path) -> None:
    """Two devices of one group; ids that are taken are left alone, and every device has one."""
    program = named(tmp_path, "qemu-system-x86_64")
    given = ["dma", "--", "-object", "memory-backend-ram,id=iommufd0,size=1M", "-device", "pcie-root-port,id=vfio0"]
    run = start("--option", "bus=rp1", first.name, peer.name, "--", *given, program=program)
    said = run.end()
    assert run.lines == ["ids iommufd1 vfio1 vfio2", f"bound {first.name} {peer.name}", "dma moved"], said
    assert run.process.returncode == 0
    assert any(line.startswith(f"pyiommufd run: {program} dma") and "bus=rp1" in line for line in said)


@pytest.mark.long
def test_arguments_of_cloud_hypervisor(start: Start, first: HostDevice, peer: HostDevice, tmp_path: Path) -> None:
    program = named(tmp_path, "cloud-hypervisor")
    given = ["dma", "--", "--platform", "num_pci_segments=2", "--kernel", "vmlinux"]
    run = start("--option", "pci_segment=1", first.name, peer.name, "--", *given, program=program)
    said = run.end()
    assert run.lines == ["ids vfio0 vfio1", f"bound {first.name} {peer.name}", "dma moved"], said
    assert run.process.returncode == 0


@pytest.mark.long
def test_printed_line_works_in_a_shell(alone: HostDevice, tmp_path: Path) -> None:
    program = named(tmp_path, "qemu-system-x86_64")
    shown = run_cli("run", "--print", alone.name, "--", str(program), "dma", "--", "a b").stdout.splitlines()
    (line,) = [line for line in shown if line.startswith(str(program))]
    assert shown[shown.index(line) + 2 :][0] == '<hostdev mode="subsystem" type="pci" managed="no">'
    assert alone.refreshed().driver is None  # it shows, and does nothing
    with plan_claim(alone).apply():
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["ids iommufd0 vfio0", f"bound {alone.name}", "dma moved"]


def test_dry_run(first: HostDevice, neighbour: HostDevice, driver_state: ReadDriverState) -> None:
    before = driver_state()
    done = run_cli("run", "--dry-run", first.name, "--", "sh")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    own = [line for line in lines if line.startswith(f"{neighbour.name}: ") or line == "sh"]
    assert own == [f"{neighbour.name}: {step}" if step != "sh" else step for step in STEPS]
    assert driver_state() == before


def without_privileges(device: HostDevice) -> list[str]:
    """What the stand-in says as nobody, with a limit of 8 MiB, when its DMA has arrived."""
    return [
        f"bound {device.name}",
        "user 65534 65534 65534 65534",
        "capabilities 0 0 0 0",
        "no new privileges 1",
        f"memlock {8 << 20} {8 << 20}",
        "dma moved",
    ]


@pytest.mark.long
def test_another_user_without_privileges(start: Start, alone: HostDevice, python_for_all: None) -> None:
    run = start("--user", "nobody", "--memlock", "8", alone.name, "--", "fds", "whoami", "dma")
    said = run.end()
    assert run.process.returncode == 0, said
    assert run.lines == without_privileges(alone)


@pytest.mark.long
def test_printed_line_keeps_the_user_and_the_limit(alone: HostDevice, python_for_all: None) -> None:
    given = ["--user", "nobody", "--memlock", "8", alone.name]
    command = [sys.executable, str(STANDIN), "fds", "whoami", "dma"]
    _, line, *_ = run_cli("run", "--print", *given, "--", *command).stdout.splitlines()
    with plan_claim(alone).apply():
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == without_privileges(alone)


@pytest.mark.long
def test_killed_run_takes_another_users_monitor_along(start: Start, alone: HostDevice, python_for_all: None) -> None:
    """The change of user would take the request to be killed back."""
    run = start("--user", "nobody", alone.name, "--", "fds", "wait")
    (pid,) = run.until("ready")
    run.process.kill()
    run.end()
    until(lambda: not Path(f"/proc/{pid}").exists())
    assert recover() == [alone.name]


@pytest.mark.long
@pytest.mark.parametrize("then", ["", "close wait"], ids=["ends", "lets the device go and stays"])
def test_what_a_monitor_leaves_behind_is_ended(alone: HostDevice, tmp_path: Path, then: str) -> None:
    """A shell that ends before what it has started."""
    ready = tmp_path / "ready"
    standin = f"{sys.executable} {STANDIN} fds wait {then}"
    script = f"{standin} > {ready} & while ! grep -q ready {ready}; do sleep 0.1; done; exit 4"
    done = run_cli("run", alone.name, "--", "sh", "-c", script)
    assert done.returncode == 4, done.stderr
    pid = next(line.split()[1] for line in ready.read_text().splitlines() if line.startswith("ready"))
    assert f"pyiommufd run: pid {pid}" in done.stderr
    assert "left behind: SIGTERM" in done.stderr
    assert ("left behind: SIGKILL" in done.stderr) == bool(then)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.long
def test_kept_claim_is_used_and_left(start: Start, alone: HostDevice) -> None:
    claim = plan_claim(alone).apply()
    try:
        (entry,) = journal.records()
        entry.state = ClaimState.KEPT
        journal.write(entry)
        dry = run_cli("run", "--dry-run", "--vmm", "other", alone.name, "--", "sh")
        assert (dry.returncode, dry.stdout, dry.stderr) == (0, "sh\n", "")
        run = start(alone.name, "--", "fds", "dma")
        run.end()
        assert run.process.returncode == 0
        assert run.lines[-1] == "dma moved"
        assert alone.refreshed().driver == "vfio-pci"
    finally:
        claim.release()


@pytest.mark.long
def test_device_that_the_host_takes_back(start: Start, alone: HostDevice) -> None:
    """REQ is the monitor's to serve; `run` names it, and ends well."""
    run = start(alone.name, "--", "fds", "remove", "wait")
    (pid,) = run.until("ready")
    drivers.unbind(alone.refreshed(), patience())
    assert run.until("asked") == ["for", alone.name]
    run.process.send_signal(signal.SIGTERM)
    said = run.end()
    assert run.process.returncode == 115
    told = [line for line in said if f"the host takes {alone.name} from" in line]
    assert len(told) == 1
    assert f"pid {pid} (python" in told[0]
    assert f"pyiommufd run: {alone.name} has left its vfio driver" in said


@pytest.mark.long
def test_members_nobody_named_stay_out_of_reach(start: Start, first: HostDevice, peer: HostDevice) -> None:
    """The group goes to its vfio driver, the monitor gets what was named."""
    run = start(first.name, "--", "fds", "wait")
    run.until("ready")
    assert run.lines[0] == f"bound {first.name}"
    assert peer.refreshed().on_vfio
    assert holders(peer.refreshed()) == ()
    assert all(device.on_vfio or device.is_bridge for device in find_group(first.group_id or 0).devices)
    run.process.terminate()
    run.end()
