"""Claims that are kept, what is done step by step, and releases that meet with difficulties."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import (
    IOMMUFD,
    ClaimError,
    ClaimRefusedError,
    CloseError,
    DeviceFile,
    HostDevice,
    find_device,
    find_group,
    plan_claim,
    recover,
    release,
)
from pyiommufd.host import drivers, sysfs, worker
from pyiommufd.host.claims import journal, restore
from pyiommufd.host.claims.record import VERSION, DeviceState
from pyiommufd.host.claims.steps import Action, Step
from tests.dry_run import dry_run
from tests.patience import patience

State = dict[str, DeviceState | None]


@pytest.fixture
def state(first: HostDevice, alone: HostDevice) -> Callable[[], State]:
    """How every member of the groups is."""

    def state() -> State:
        members = [device for at in (first, alone) for device in find_group(at.group_id or 0).devices]
        return {device.name: restore.device_state(device.sys_path) for device in members}

    return state


@pytest.fixture(autouse=True)
def as_before(state: Callable[[], State]) -> Iterator[State]:
    """Every test gives back what it has taken, and leaves no record."""
    before = state()
    yield before
    try:
        assert state() == before
        assert journal.records() == []
    finally:
        release()
        recover()


def holds(step: Step) -> bool:
    """Whether sysfs shows what a step does."""
    device = find_device(step.target)
    match step.action:
        case Action.SET_OVERRIDE | Action.CLEAR_OVERRIDE:
            return drivers.driver_override(device) == step.value
        case Action.BIND:
            return device.driver == step.value
        case Action.UNBIND:
            return device.driver is None
        case Action.SET_POWER:
            return sysfs.read(device.sys_path / "power/control") == step.value
    return False


class Watch:
    """Is told of steps; each has to hold by the time of the next, and not before."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, step: Step) -> None:
        self.check()
        # A driver has mostly made the same of it.
        assert step.action is Action.SET_POWER or not holds(step), f"done before it was told: {step}"
        self.steps.append(step)

    def check(self) -> None:
        assert not self.steps or holds(self.steps[-1]), self.steps[-1]


def test_steps_are_what_then_happens(first: HostDevice, alone: HostDevice, caplog: pytest.LogCaptureFixture) -> None:
    """What is planned is what is told, what sysfs shows, and what the log has written to it."""
    plan = plan_claim([first, alone])
    takes: list[tuple[Callable[[Watch], object], Callable[[], tuple[Step, ...]]]] = [
        (lambda watch: plan.apply(keep=True, report=watch), lambda: plan.steps),
        (lambda watch: release(report=watch), lambda: dry_run(release)),
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
        writes = [message for message in caplog.messages if message.startswith(("write '", 'write "'))]
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
    assert dry_run(recover) == ()
    assert recover() == []
    with plan_claim(alone).apply() as other:
        assert not other.kept
        assert alone.name not in {step.target for step in dry_run(release)}
        with pytest.raises(
            ClaimError, match=rf"no kept claim has {alone.name}: it is claimed by this process \(pid {os.getpid()}\)"
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
    (entry,) = journal.records()
    ours, entry.devices[0].identity = entry.devices[0].identity, "8086:1521"
    journal.write(entry)
    release()
    assert "another device by now, 1234:11e8" in caplog.text
    assert alone.refreshed().driver == "vfio-pci"
    entry.devices[0].identity = ours
    journal.write(entry)
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
        if step.target == first.name and step.action is Action.UNBIND:
            opened.append(DeviceFile(first))
            monkeypatch.setattr(worker, "SECONDS", limit)
        else:
            monkeypatch.setattr(worker, "SECONDS", patience())

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
    with pytest.raises(CloseError, match=rf"{first.name}: an earlier write .* still blocks .* \(process \d+\)"):
        claim.release()
    with pytest.raises(ClaimError, match="claimed already"):
        plan_claim(first).apply()
    with plan_claim(alone).apply():
        pass
    opened[0].close()
    for process in worker._abandoned:
        process.wait(patience())
    claim.release()
    assert claim.released


def test_claims_of_another_boot_are_forgotten(alone: HostDevice, caplog: pytest.LogCaptureFixture) -> None:
    plan_claim(alone).apply(keep=True)
    (entry,) = journal.records()
    entry.boot = "another"
    journal.write(entry)
    assert dry_run(release) == dry_run(recover) == ()
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
        for refused in (lambda: plan_claim(first), lambda: dry_run(recover), lambda: release()):
            with pytest.raises(ClaimError, match=r"corrupt\.json is not a record"):
                refused()
        assert alone.refreshed().driver == "vfio-pci"
        with pytest.raises(ClaimError, match=r"corrupt\.json is not a record"):
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
        for refused in (plan.apply, recover, release, lambda: dry_run(recover), lambda: dry_run(release)):
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
        assert journal.records() == []
    finally:
        subprocess.run(["umount", run], check=True)


def test_group_that_a_process_has_bound_is_left_whole(
    first: HostDevice, neighbour: HostDevice, state: Callable[[], State]
) -> None:
    """The kernel would let the others leave vfio-pci, and not come to their host drivers: EBUSY."""
    claim = plan_claim(first).apply(keep=True)
    taken = state()
    with IOMMUFD() as iommufd, iommufd.bind(first):
        for work in (lambda: dry_run(release), release, claim.release):
            with pytest.raises(CloseError, match=r"nothing was changed:\n") as caught:
                work()
            said = str(caught.value)
            assert f"{neighbour.name} stays as it is: this process (pid {os.getpid()}) holds " in said
            assert f"holds {first.refreshed().vfio_cdev} by fd" in said
            assert "end that, and try again" in said
            assert "Error" not in said
            assert state() == taken
    claim.release()


def test_group_of_which_a_process_holds_a_member_is_not_claimed(first: HostDevice, peer: HostDevice) -> None:
    drivers.set_driver_override(peer, "vfio-pci")
    try:
        drivers.bind(peer, "vfio-pci")
        with DeviceFile(peer):
            (refusal,) = plan_claim(first).refusals
            assert (refusal.device, refusal.kind) == (peer.name, "held")
    finally:
        drivers.unbind(peer)
        drivers.set_driver_override(peer, None)


def test_rest_of_a_claim_is_given_back(first: HostDevice, alone: HostDevice, as_before: State) -> None:
    """Of two groups the one that nobody has; what is left stays on record."""
    plan_claim([first, alone]).apply(keep=True)
    with DeviceFile(alone):
        with pytest.raises(CloseError, match=f"not everything could be given back.*\n  {alone.name} stays as it is"):
            release(first)
        assert first.refreshed().driver is None
        (record,) = journal.records()
        assert [state.name for state in record.devices] == record.wanted == [alone.name]
        # What has been given back is the host's, and nobody's record.
        with plan_claim(first).apply():
            pass
    assert recover() == [alone.name]


def test_power_is_given_back(neighbour: HostDevice, alone: HostDevice, state: Callable[[], State]) -> None:
    """vfio-pci lets a device sleep, and says that it may not when it leaves."""
    files = [device.sys_path / "power/control" for device in (neighbour, alone)]
    before = [sysfs.read(file) or "" for file in files]
    try:
        for power in ("auto", "on"):
            for file in files:
                sysfs.write(file, power)
            was = state()
            with plan_claim([neighbour, alone]).apply():
                pass
            assert [sysfs.read(file) for file in files] == [power, power]
            assert state() == was
    finally:
        for file, power in zip(files, before, strict=True):
            sysfs.write(file, power)


@pytest.fixture
def driver_gone(first: HostDevice, neighbour: HostDevice, as_before: State) -> Iterator[HostDevice]:
    """A claimed device whose host driver is no longer available, by the record."""
    plan_claim(first).apply(keep=True)
    (record,) = journal.records()
    next(device for device in record.devices if device.name == neighbour.name).driver = "gone_driver"
    journal.write(record)
    yield neighbour
    drivers.unbind(neighbour)
    drivers.set_driver_override(neighbour, None)
    drivers.bind(neighbour, "virtio-pci")
    sysfs.write(neighbour.sys_path / "power/control", before_power(as_before, neighbour))


def before_power(state: State, device: HostDevice) -> str:
    found = state[device.name]
    assert found is not None
    return found.power or ""


def test_device_whose_driver_is_gone_stays_where_it_is_and_can_be_left(
    driver_gone: HostDevice, first: HostDevice
) -> None:
    # Loaded before anything else is done with the device.
    ours = [step.action for step in dry_run(release) if step.target == driver_gone.name]
    assert ours[:2] == [Action.LOAD_DRIVER, Action.UNBIND]
    for _ in range(2):
        with pytest.raises(
            CloseError,
            match=rf"{driver_gone.name} stays as it is: the driver gone_driver .*leave=\['{driver_gone.name}'\]",
        ):
            release()
        assert driver_gone.refreshed().driver == "vfio-pci"
        assert first.refreshed().driver is None
        assert [one.name for record in journal.records() for one in record.devices] == [driver_gone.name]
    with pytest.raises(ClaimError, match=f"{first.name} is not among what is to be released"):
        release(leave=first)
    assert release(leave=driver_gone) == []
    assert driver_gone.refreshed().driver == "vfio-pci"
    assert journal.records() == []


def test_claim_of_a_newer_version_stops_only_itself(
    alone: HostDevice, first: HostDevice, caplog: pytest.LogCaptureFixture
) -> None:
    plan_claim(alone).apply(keep=True)
    plan_claim(first).apply(keep=True)
    record = next(record for record in journal.records() if alone.name in record.names)
    path = journal.RUN / f"{record.id}.json"
    ours = path.read_text()
    newer = json.loads(ours) | {"version": VERSION + 1, "state": "of another kind", "something": [1]}
    path.write_text(json.dumps(newer))
    try:
        with pytest.raises(ClaimRefusedError, match=rf"{alone.name}: it is claimed already, by a newer pyiommufd: use"):
            plan_claim(alone).apply()
        with pytest.raises(ClaimError, match=rf"no kept claim has {alone.name}: .* a newer pyiommufd: use that one"):
            release(alone)
        with pytest.raises(ClaimError, match=rf"{alone.name}: claimed by a newer pyiommufd: use that one"):
            release()
        # All others have been.
        assert first.refreshed().driver is None
        with plan_claim(first).apply():
            pass
        assert recover() == []
        assert f"a claim of {alone.name} was made by a newer pyiommufd: use that one" in caplog.text
        assert alone.refreshed().driver == "vfio-pci"
        assert json.loads(path.read_text()) == newer
    finally:
        path.write_text(ours)
        release(alone)
