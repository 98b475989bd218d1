"""Claims that are kept, what is done step by step, and releases that meet with difficulties."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import ClaimError, CloseError, DeviceFile, HostDevice, find_device, find_group, plan_claim, recover
from pyiommufd.host import drivers, helper
from pyiommufd.host.claims import journal, restore
from pyiommufd.host.claims.claim import recover_steps, release, release_steps
from pyiommufd.host.claims.journal import Before
from pyiommufd.host.claims.steps import Action, Step
from tests.patience import patience

State = dict[str, Before | None]


@pytest.fixture
def state(first: HostDevice, alone: HostDevice) -> Callable[[], State]:
    """How every member of the groups is."""

    def state() -> State:
        members = [device for at in (first, alone) for device in find_group(at.group_id or 0).devices]
        return {device.name: restore.look(device.sys_path) for device in members}

    return state


@pytest.fixture(autouse=True)
def as_before(state: Callable[[], State]) -> Iterator[State]:
    """Every test gives back what it has taken, and leaves no record."""
    before = state()
    yield before
    try:
        assert state() == before
        assert journal.entries(journal.RUN) == []
    finally:
        release()
        recover()


def holds(step: Step) -> bool:
    """Whether sysfs shows what a step does."""
    device = find_device(step.device)
    match step.action:
        case Action.SET_OVERRIDE | Action.CLEAR_OVERRIDE:
            return drivers.driver_override(device) == step.value
        case Action.BIND:
            return device.driver == step.value
        case Action.UNBIND:
            return device.driver is None
    return False


class Watch:
    """Is told of steps; each has to hold by the time of the next, and not before."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, step: Step) -> None:
        self.check()
        assert not holds(step), f"done before it was told: {step}"
        self.steps.append(step)

    def check(self) -> None:
        assert not self.steps or holds(self.steps[-1]), self.steps[-1]


def test_steps_are_what_then_happens(first: HostDevice, alone: HostDevice, caplog: pytest.LogCaptureFixture) -> None:
    """What is planned is what is told, what sysfs shows, and what the log has written to it."""
    plan = plan_claim([first, alone])
    takes: list[tuple[Callable[[Watch], object], Callable[[], tuple[Step, ...]]]] = [
        (lambda watch: plan.apply(keep=True, report=watch), lambda: plan.steps),
        (lambda watch: release(report=watch), release_steps),
    ]
    for take, planned in takes:
        steps = planned()
        assert len(steps) >= 8
        watch = Watch()
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger="pyiommufd"):
            take(watch)
        watch.check()
        assert tuple(watch.steps) == steps
        writes = [message for message in caplog.messages if message.startswith("write ")]
        assert len(writes) == len(steps)
        for step, message in zip(steps, writes, strict=True):
            assert Path(step.command.rpartition(" > ")[2]).name in message
            assert (step.value or "") in message or step.action in (Action.UNBIND, Action.BIND)


def test_commands_undo_a_claim(first: HostDevice, as_before: State, state: Callable[[], State]) -> None:
    plan = plan_claim(first)
    claim = plan.apply()
    assert state() != as_before
    for command in plan.undo_commands:
        subprocess.run(["sh", "-ec", command], check=True)
    assert state() == as_before
    # The record is still there; what it has to restore is restored.
    watch = Watch()
    claim.release(report=watch)
    assert watch.steps == []


def test_kept_claim_outlives_its_block_and_its_process(
    first: HostDevice, alone: HostDevice, in_child: Callable[[Callable[[], Any]], Any], state: Callable[[], State]
) -> None:
    def child() -> bool:
        with plan_claim(first).apply(keep=True) as claim:
            assert claim.kept
        return claim.released

    assert in_child(child) is False
    taken = state()
    assert first.refreshed().driver == "vfio-pci"
    assert recover_steps() == ()
    assert recover() == []
    with plan_claim(alone).apply() as other:
        assert not other.kept
        assert alone.name not in {step.device for step in release_steps()}
        with pytest.raises(
            ClaimError, match=rf"no kept claim has {alone.name}: it is claimed by process {os.getpid()}"
        ):
            release([first, alone])
    assert state() == taken
    with pytest.raises(ClaimError, match="no kept claim has"):
        release([alone])
    release([first])


def test_kept_claim_is_released_by_any_of_its_devices(first: HostDevice, neighbour: HostDevice) -> None:
    claim = plan_claim(first).apply(keep=True)
    moved = [move.device.name for move in claim.plan.moves]
    assert release([neighbour.name]) == moved
    # Whoever has the object still has nothing more to give back.
    drivers.set_driver_override(first, "pci-stub")
    claim.release()
    assert claim.released
    assert drivers.driver_override(first) == "pci-stub"
    drivers.set_driver_override(first, None)
    assert release() == []


def test_release_of_a_kept_claim_whose_device_is_gone(alone: HostDevice, caplog: pytest.LogCaptureFixture) -> None:
    plan_claim(alone).apply(keep=True)
    (alone.sys_path / "remove").write_text("1")
    try:
        assert release([alone.name]) == [alone.name]
        assert f"{alone.name} is gone" in caplog.text
    finally:
        Path("/sys/bus/pci/rescan").write_text("1")


def test_other_device_in_the_place_is_left_alone(alone: HostDevice, caplog: pytest.LogCaptureFixture) -> None:
    plan_claim(alone).apply(keep=True)
    (entry,) = journal.entries(journal.RUN)
    ours, entry.devices[0].identity = entry.devices[0].identity, "8086:1521"
    journal.write(journal.RUN, entry)
    release()
    assert "another device by now, 1234:11e8" in caplog.text
    assert alone.refreshed().driver == "vfio-pci"
    entry.devices[0].identity = ours
    journal.write(journal.RUN, entry)
    release()


def test_whoever_is_told_can_stop_a_claim_but_no_release(
    first: HostDevice, neighbour: HostDevice, as_before: State, state: Callable[[], State]
) -> None:
    def stop(step: Step) -> None:
        if step.action is Action.BIND:
            raise RuntimeError(f"not {step}")

    with pytest.raises(RuntimeError, match="bind to vfio-pci"):
        plan_claim(first).apply(report=stop)
    assert state() == as_before
    with plan_claim(first).apply() as claim:
        claim.release(report=stop)
        assert state() == as_before


@pytest.mark.long
def test_unbind_that_hangs_is_told_of_in_time_and_the_rest_given_back(
    first: HostDevice, neighbour: HostDevice, alone: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody opens the device between the look at its holders and the unbind, and ignores the kernel's request."""
    claim = plan_claim([first]).apply()
    opened: list[DeviceFile] = []
    limit = patience(1)

    def open_it(step: Step) -> None:
        if step.device == first.name and step.action is Action.UNBIND:
            opened.append(DeviceFile(first))
            monkeypatch.setattr(helper, "SECONDS", limit)
        else:
            monkeypatch.setattr(helper, "SECONDS", patience())

    start = time.monotonic()
    with pytest.raises(
        CloseError, match=f"did not return within {limit:g} s: something still uses the device"
    ) as caught:
        claim.release(report=open_it)
    print(f"told of after {time.monotonic() - start:.1f} s")
    monkeypatch.undo()
    assert len(caught.value.errors) == 1
    assert neighbour.refreshed().driver == "virtio-pci"
    # It can be neither released nor claimed until the kernel has done; others can.
    with pytest.raises(CloseError, match=rf"{first.name}: what was asked .* \(process \d+ waits"):
        claim.release()
    with pytest.raises(ClaimError, match="claimed already"):
        plan_claim(first).apply()
    with plan_claim(alone).apply():
        pass
    opened[0].close()
    for process in helper._abandoned:
        process.wait(patience())
    claim.release()
    assert claim.released


def test_claims_of_another_boot_are_forgotten(alone: HostDevice, caplog: pytest.LogCaptureFixture) -> None:
    plan_claim(alone).apply(keep=True)
    (entry,) = journal.entries(journal.RUN)
    entry.boot = "another"
    journal.write(journal.RUN, entry)
    assert release_steps() == recover_steps() == ()
    assert recover() == []
    assert "of an earlier boot" in caplog.text
    assert not (journal.RUN / f"{entry.id}.json").exists()
    drivers.unbind(alone)
    drivers.set_driver_override(alone, None)


def test_corrupt_record_is_named_and_the_others_recovered(
    alone: HostDevice, first: HostDevice, in_child: Callable[[Callable[[], Any]], Any]
) -> None:
    in_child(lambda: plan_claim(alone).apply().kept)  # its process ends
    path = journal.RUN / "corrupt.json"
    path.write_text("{")
    path.chmod(0o600)
    try:
        for refused in (lambda: plan_claim(first), lambda: recover_steps(), lambda: release()):
            with pytest.raises(ClaimError, match=r"corrupt\.json is no record"):
                refused()
        assert alone.refreshed().driver == "vfio-pci"
        with pytest.raises(ClaimError, match=r"corrupt\.json is no record"):
            recover()
        assert alone.refreshed().driver is None
    finally:
        path.unlink()


def test_folder_that_others_may_write_is_refused(alone: HostDevice) -> None:
    plan = plan_claim(alone)
    recover()  # makes the folder, should this be the first test
    journal.RUN.chmod(0o777)
    try:
        for refused in (lambda: plan.apply(), lambda: recover(), lambda: release()):
            with pytest.raises(ClaimError, match="not safe to use"):
                refused()
    finally:
        journal.RUN.chmod(0o700)


def test_users_plan_and_are_told_that_claiming_takes_root(
    alone: HostDevice, in_child: Callable[[Callable[[], Any]], Any]
) -> None:
    recover()

    def child() -> list[str]:
        os.setgid(65534)
        os.setuid(65534)
        plan = plan_claim(alone)
        assert plan.steps
        said = []
        for refused in (plan.apply, recover, release, recover_steps, release_steps):
            try:
                refused()
            except ClaimError as error:
                said.append(str(error))
        return said

    said = in_child(child)
    assert len(said) == 5
    assert all("takes root" in text for text in said)


def test_record_that_cannot_be_written_ends_the_claim(
    first: HostDevice, as_before: State, state: Callable[[], State], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The disk is full halfway: no step without its record, and what has been done is undone all the same."""
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", run], check=True)
    monkeypatch.setattr(journal, "RUN", run)
    steps: list[Step] = []

    def fill(step: Step) -> None:
        steps.append(step)
        if len(steps) == 4:
            with contextlib.suppress(OSError), open(run / "full", "wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()

    try:
        plan = plan_claim(first)
        with pytest.raises(ClaimError, match=r"rolled back.*No space left"):
            plan.apply(report=fill)
        assert steps[:4] == list(plan.steps[:4])
        assert state() == as_before
        assert journal.entries(run) == []
    finally:
        subprocess.run(["umount", run], check=True)
