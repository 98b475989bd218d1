"""A claim or a release that is cut off at each of its steps, and what is left to recover."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyiommufd import Claim, ClaimPlan, HostDevice, plan_claim, recover
from pyiommufd.host import drivers, durable, sysfs
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimState, DeviceState
from pyiommufd.host.claims.release import release
from pyiommufd.host.worker import Worker
from tests.sweeps import sample

State = dict[str, DeviceState]
CLAIM_STEPS = 9
RELEASE_STEPS = 17


@pytest.fixture
def plan(rng: HostDevice, alone: HostDevice, pf: HostDevice, functions: tuple[HostDevice, ...]) -> Iterator[ClaimPlan]:
    """A claim of three devices: on a driver, without one and with an override, on a driver and with functions."""
    drivers.set_driver_override(alone, "pci-stub")
    powers = {device: sysfs.read(device.sys_path / "power/control") or "" for device in (rng, alone)}
    for device in powers:
        sysfs.write(device.sys_path / "power/control", "auto")
    plan = plan_claim([rng, alone, pf], force=["vfs"])
    assert plan.refusals == ()
    assert len(plan.moves) == 3
    assert len(plan.steps) == CLAIM_STEPS
    yield plan
    for device, power in powers.items():
        sysfs.write(device.sys_path / "power/control", power)
    drivers.set_driver_override(alone, None)


class Point(NamedTuple):
    """Where a run can be cut off."""

    how: str
    """``before`` a change, or ``during`` it."""
    at: int
    """The number of the change."""
    what: str
    """The change."""


class Cut:
    """How one run of a child ended."""

    def __init__(self, changes: list[str], status: int) -> None:
        self.changes = changes
        """All that it came to; that at which it was cut off is the last."""
        self.status = status

    def was_killed_at(self, point: Point) -> bool:
        """Whether it ended there, with no change before that an uncut run does not make as well."""
        return self.status == -signal.SIGKILL and len(self.changes) == point.at + 1 and self.changes[-1] == point.what


def cut_off(work: Callable[[], Any], at: int = -1, cut: Callable[[str], None] = lambda _: None) -> Cut:
    """Run something in a child that is cut off when it is about to make the change of that number; without: not cut."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        count = itertools.count()
        commit = durable.commit

        def counted(what: str, change: Callable[[], None]) -> None:
            os.write(writer, f"{what}\n".encode())
            if next(count) == at:
                cut(what)
            commit(what, change)

        durable.commit = counted
        try:
            work()
            os._exit(0)
        except KeyboardInterrupt:
            os._exit(128 + signal.SIGINT)
        finally:
            os._exit(99)
    os.close(writer)
    with open(reader) as pipe:
        changes = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    return Cut(changes, os.waitstatus_to_exitcode(status))


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(number: signal.Signals, _: str) -> None:
    os.kill(os.getpid(), number)


def die_during(what: str) -> None:
    """Die when the record is half written, or the kernel is at the step."""
    if what.startswith("record"):
        os.fsync = die
    elif what.startswith("remove"):
        Path.unlink = die  # type: ignore[method-assign]
    else:
        Worker._answer = die  # type: ignore[method-assign]


def kind(what: str) -> str:
    """What sort of change it is."""
    text = what if what.startswith(("record", "remove")) else what.partition(": ")[2]
    return " ".join(text.split()[:3])


def points(changes: list[str]) -> list[Point]:
    """Before each of the changes that an uncut run has made, and once during each sort of change."""
    found, seen = [], set()
    for at, what in enumerate(changes):
        found.append(Point("before", at, what))
        if kind(what) not in seen:
            seen.add(kind(what))
            found.append(Point("during", at, what))
    return found


def kill_at(point: Point, work: Callable[[], Any]) -> None:
    """Run something in a child that is killed there."""
    run = cut_off(work, point.at, die if point.how == "before" else die_during)
    assert run.was_killed_at(point), (point, run.status, run.changes)


def show(capsys: pytest.CaptureFixture[str], title: str, rows: list[tuple[str, str, str]]) -> None:
    with capsys.disabled():
        print(f"\n{title}")
        for number, (how, at, outcome) in enumerate(rows):
            print(f"{number:4}  {how:6}  {at:72}  {outcome}")


def recovered() -> str:
    """Recover, and say what that was."""
    left = journal.records()
    taken: list[str] = []
    names = recover(report=lambda step: taken.append(str(step)))
    if not left:
        return "no record: nothing had been done"
    return f"recovered {len(names)} devices in {len(taken)} steps"


@pytest.mark.long
def test_claim_that_is_killed_at_each_step(
    plan: ClaimPlan, state: Callable[[], State], capsys: pytest.CaptureFixture[str]
) -> None:
    before = state()

    def outcome() -> str:
        text = recovered()
        return f"{text}; as before: {state() == before and journal.records() == []}"

    whole = cut_off(plan.apply)
    assert whole.status == 0
    rows = [("", "(held, its process ended)", outcome())]
    every = points(whole.changes)
    assert [what for how, _, what in every if how == "before" and not what.startswith("record")] == [
        str(step) for step in plan.steps
    ]
    for point in sample("claims.kill[claim]", every, 5):
        kill_at(point, plan.apply)
        rows.append((point.how, point.what, outcome()))
    show(capsys, "SIGKILL in a claim of three devices, then recover", rows)
    assert all(outcome.endswith("as before: True") for _, _, outcome in rows)


@pytest.mark.long
def test_release_that_is_killed_at_each_step(
    plan: ClaimPlan, state: Callable[[], State], capsys: pytest.CaptureFixture[str]
) -> None:
    before = state()

    def outcome() -> str:
        untouched = [entry.state for entry in journal.records()] == [ClaimState.KEPT]
        claimed = state()
        text = recovered()
        if untouched:
            # It had not begun: the claim is as good as ever.
            same = state() == claimed != before
            text = "kept claim left alone"
        else:
            same = state() == before and journal.records() == []
        return f"{text}; as it should be: {same}"

    plan.apply(keep=True)
    whole = cut_off(release)
    assert whole.status == 0
    rows = [("", "(all done)", outcome())]
    every = points(whole.changes)
    taken = [what for how, _, what in every if how == "before" and not what.startswith(("record", "remove"))]
    assert len(taken) == RELEASE_STEPS
    for point in sample("claims.kill[release]", every, 5):
        if not journal.records():
            plan.apply(keep=True)
        kill_at(point, release)
        rows.append((point.how, point.what, outcome()))
    show(capsys, "SIGKILL in a release of three devices, then recover", rows)
    assert all(outcome.endswith("should be: True") for _, _, outcome in rows)


@pytest.mark.long
def test_signals_undo_the_claim_at_each_step(
    plan: ClaimPlan, state: Callable[[], State], capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM and SIGINT by turns; they take effect, and need no recovery."""
    before, rows = state(), []
    ends = {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 128 + signal.SIGINT}
    whole = cut_off(plan.apply)
    recover()
    # A change of the machine comes after each word of the record.
    every = list(zip(range(1, len(whole.changes), 2), itertools.cycle(ends), strict=False))
    assert len(every) == CLAIM_STEPS
    for at, number in sample("claims.kill[signals]", every, 3):
        run = cut_off(plan.apply, at, partial(interrupt, number))
        same = state() == before and journal.records() == []
        rows.append((number.name, whole.changes[at], f"ended by it: {run.status == ends[number]}; as before: {same}"))
        assert run.changes[: at + 1] == whole.changes[: at + 1]
    show(capsys, "SIGTERM and SIGINT in a claim of three devices", rows)
    assert {outcome for _, _, outcome in rows} == {"ended by it: True; as before: True"}


@pytest.mark.long
def test_signal_waits_for_the_end_of_a_release(plan: ClaimPlan, state: Callable[[], State]) -> None:
    before = state()
    plan.apply(keep=True)
    run = cut_off(release, 3, partial(interrupt, signal.SIGTERM))
    assert len(run.changes) > 3
    assert run.status == -signal.SIGTERM
    assert state() == before
    assert journal.records() == []


def test_signal_that_comes_when_the_claim_is_made(alone: HostDevice, state: Callable[[], State]) -> None:
    """At the latest moment: the caller does not have the claim yet, so it is released."""
    before = state()

    class Late(Claim):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            os.kill(os.getpid(), signal.SIGINT)

    def work() -> None:
        from pyiommufd.host.claims import claim as module

        module.Claim = Late  # type: ignore[assignment,misc]
        plan_claim(alone).apply()

    assert cut_off(work).status == 128 + signal.SIGINT
    assert state() == before
    assert journal.records() == []
