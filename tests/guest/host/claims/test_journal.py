"""The record of claims, and recovering by it what a process has left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyiommufd import ClaimError, ClaimRefusedError, CloseError, DeviceFile, HostDevice, plan_claim, recover
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimState, start_time
from tests.boot.processes import descendants, gone, wait_gone
from tests.patience import until

Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that claims a device; by default it has done so when this returns its pid."""
    started: list[int] = []

    def start(device: HostDevice, *, wait: bool = True) -> int:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                plan_claim(device).apply()
                os.write(writer, b"c")
                signal.pause()
            finally:
                os._exit(1)
        os.close(writer)
        started.append(child)
        with open(reader, "rb") as pipe:
            if wait:
                assert pipe.read(1) == b"c"
        return child

    yield start
    for child in started:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            end(child)
    recover()


def end(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_claim_of_a_killed_process_is_recovered(
    start: Start, first: HostDevice, peer: HostDevice, neighbour: HostDevice
) -> None:
    process = start(first)
    assert neighbour.refreshed().driver == "vfio-pci"
    end(process)
    (entry,) = journal.records()
    assert (entry.state, entry.pid, journal.is_alive(entry)) == (ClaimState.SESSION, process, False)
    # Nobody gets it before.
    with pytest.raises(ClaimRefusedError, match="recover"):
        plan_claim(first).apply()
    assert set(recover()) == {first.name, peer.name, neighbour.name}
    assert neighbour.refreshed().driver == "virtio-pci"
    assert first.refreshed().driver is None
    assert journal.records() == []
    assert recover() == []


def test_claim_of_a_living_process_is_left_alone(start: Start, alone: HostDevice) -> None:
    start(alone)
    assert recover() == []
    assert alone.refreshed().driver == "vfio-pci"
    with pytest.raises(ClaimRefusedError, match="claimed already, by process"):
        plan_claim(alone).apply()


def test_process_that_nobody_has_waited_for_is_gone(start: Start, alone: HostDevice) -> None:
    process = start(alone)
    os.kill(process, signal.SIGKILL)
    until(lambda: gone(process), "the process ends")
    assert recover() == [alone.name]
    assert alone.refreshed().driver is None


def test_other_process_of_that_pid_is_not_the_claimer(start: Start, alone: HostDevice) -> None:
    process = start(alone)
    (entry,) = journal.records()
    assert entry.start_time == start_time(process)
    entry.start_time -= 1
    journal.write(entry)
    assert recover() == [alone.name]


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 3])
def test_claim_that_died_halfway_is_undone(
    start: Start, first: HostDevice, neighbour: HostDevice, devices: int
) -> None:
    """Killed as soon as its record names so many devices."""
    process = start(first, wait=False)
    until(lambda: any(len(entry.devices) >= devices for entry in journal.records()), pause=0)
    os.kill(process, signal.SIGSTOP)
    helpers = list(descendants(process))
    end(process)
    recovered = recover()
    assert len(recovered) >= devices
    assert recovered[0] == first.name
    # Also what the dead process had only just asked for does not come after.
    wait_gone(*helpers)
    group = first.group
    assert group is not None
    assert {device.name: device.driver for device in group.devices if device.driver} == {neighbour.name: "virtio-pci"}


def test_kept_claim_is_left_alone_and_its_half_release_completed(start: Start, alone: HostDevice) -> None:
    end(start(alone))
    (entry,) = journal.records()
    entry.state = ClaimState.KEPT
    journal.write(entry)
    assert recover() == []
    assert alone.refreshed().driver == "vfio-pci"
    # What a release begins with.
    entry.state = ClaimState.IN_PROGRESS
    journal.write(entry)
    assert recover() == [alone.name]
    assert alone.refreshed().driver is None


def test_recover_of_a_held_device_keeps_the_record(start: Start, alone: HostDevice) -> None:
    end(start(alone))
    with DeviceFile(alone), pytest.raises(CloseError, match=alone.name):
        recover()
    # This process lives, and is not at it any more.
    (record,) = journal.records()
    assert not journal.is_alive(record)
    assert recover() == [alone.name]


def test_foreign_file_is_named(tmp_path: Path) -> None:
    path = journal.RUN / "foreign.json"
    path.write_text("{}")
    try:
        with pytest.raises(ClaimError, match=r"foreign\.json"):
            recover()
    finally:
        path.unlink()
    assert recover() == []


HOLDS = """
import sys
from pyiommufd import plan_claim

# From in there nobody sees what other processes do with a device.
with plan_claim(sys.argv[1], force=["unseen"]).apply():
    print("claimed", flush=True)
    input()
"""
NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def test_claim_of_a_process_in_another_pid_namespace_is_left_alone(alone: HostDevice) -> None:
    """Its number is another process's here, or nobody's."""
    command = [*NAMESPACE, sys.executable, "-c", HOLDS, alone.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "claimed\n"
        (record,) = journal.records()
        assert journal.describe_owner(record) == f"process {record.pid} of another PID namespace"
        assert recover() == []
        assert alone.refreshed().driver == "vfio-pci"
        holder.kill()
    until(lambda: not journal.is_alive(record), "the process of the claim has ended")
    assert recover() == [alone.name]
    assert alone.refreshed().driver is None


def test_recovery_from_another_pid_namespace_leaves_a_living_claim_alone(start: Start, alone: HostDevice) -> None:
    process = start(alone)
    command = [*NAMESPACE, sys.executable, "-m", "pyiommufd.cli", "recover"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert alone.refreshed().driver == "vfio-pci"
    end(process)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert alone.refreshed().driver is None
