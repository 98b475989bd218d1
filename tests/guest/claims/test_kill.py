"""A claim or a release that is cut off at each of its steps, and what is left to recover."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import Claim, ClaimPlan, HostDevice, plan_claim, recover
from pyiommufd.host import drivers
from pyiommufd.host.claims import journal, steps
from pyiommufd.host.claims.claim import release
from pyiommufd.host.claims.journal import Before
from pyiommufd.host.helper import Helper

State = dict[str, Before]
CLAIM_STEPS = 9
RELEASE_STEPS = 13


@pytest.fixture
def plan(rng: HostDevice, alone: HostDevice, pf: HostDevice, functions: tuple[HostDevice, ...]) -> Iterator[ClaimPlan]:
    """A claim of three devices: on a driver, without one and with an override, on a driver and with functions."""
    drivers.set_driver_override(alone, "pci-stub")
    plan = plan_claim([rng, alone, pf], force=["vfs"])
    assert plan.refusals == ()
    assert len(plan.moves) == 3
    assert len(plan.steps) == CLAIM_STEPS
    yield plan
    drivers.set_driver_override(alone, None)


class CutOff:
    """How one run of a child ended."""

    def __init__(self, at: str, status: int) -> None:
        self.at = at
        """The change at which it was cut off; empty: it has made all of them."""
        self.status = status


def cut_off(work: Callable[[], Any], at: int, cut: Callable[[str], None]) -> CutOff:
    """Run something in a child that is cut off when it is about to make the change of that number."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        count = itertools.count()
        cross = steps.cross

        def counted(what: str, change: Callable[[], None]) -> None:
            if next(count) == at:
                os.write(writer, what.encode())
                cut(what)
            cross(what, change)

        steps.cross = counted
        try:
            work()
            os._exit(0)
        except KeyboardInterrupt:
            os._exit(128 + signal.SIGINT)
        finally:
            os._exit(99)
    os.close(writer)
    with open(reader, "rb") as pipe:
        what = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return CutOff(what, os.waitstatus_to_exitcode(status))


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
        Helper._answer = die  # type: ignore[method-assign]


def kind(what: str) -> str:
    """What sort of change it is."""
    text = what if what.startswith(("record", "remove")) else what.partition(": ")[2]
    return " ".join(text.split()[:3])


def runs(work: Callable[[], Any], prepare: Callable[[], Any] = lambda: None) -> Iterator[tuple[str, CutOff]]:
    """Some work that is cut off before each of its changes, and once during each sort of change; the last is not."""
    seen = set()
    for at in itertools.count():
        prepare()
        run = cut_off(work, at, die)
        yield "before", run
        if not run.at:
            return
        if kind(run.at) not in seen:
            seen.add(kind(run.at))
            prepare()
            yield "during", cut_off(work, at, die_during)


def show(capsys: pytest.CaptureFixture[str], title: str, rows: list[tuple[str, str, str]]) -> None:
    with capsys.disabled():
        print(f"\n{title}")
        for number, (how, at, outcome) in enumerate(rows):
            print(f"{number:4}  {how:6}  {at:72}  {outcome}")


def recovered() -> str:
    """Recover, and say what that was."""
    left = journal.entries(journal.RUN)
    taken: list[str] = []
    names = recover(report=lambda step: taken.append(str(step)))
    if not left:
        return "no record: nothing had been done"
    return f"recovered {len(names)} devices in {len(taken)} steps"


def test_claim_that_is_killed_at_each_step(
    plan: ClaimPlan, state: Callable[[], State], capsys: pytest.CaptureFixture[str]
) -> None:
    before, rows = state(), []
    for how, run in runs(plan.apply):
        assert run.status == (-signal.SIGKILL if run.at else 0)
        outcome = recovered()
        same = state() == before and journal.entries(journal.RUN) == []
        rows.append((how, run.at or "(held, its process ended)", f"{outcome}; as before: {same}"))
    show(capsys, "SIGKILL in a claim of three devices, then recover", rows)
    assert all(outcome.endswith("as before: True") for _, _, outcome in rows)
    assert [at for how, at, _ in rows if how == "before" and not at.startswith(("record", "("))] == [
        str(step) for step in plan.steps
    ]


def test_release_that_is_killed_at_each_step(
    plan: ClaimPlan, state: Callable[[], State], capsys: pytest.CaptureFixture[str]
) -> None:
    before, rows = state(), []

    def prepare() -> None:
        if not journal.entries(journal.RUN):
            plan.apply(keep=True)

    for how, run in runs(release, prepare):
        assert run.status == (-signal.SIGKILL if run.at else 0)
        untouched = [entry.state for entry in journal.entries(journal.RUN)] == [journal.State.KEPT]
        claimed = state()
        outcome = recovered()
        if untouched:
            # It had not begun: the claim is as good as ever.
            same = state() == claimed != before
            outcome = "kept claim left alone"
        else:
            same = state() == before and journal.entries(journal.RUN) == []
        rows.append((how, run.at or "(all done)", f"{outcome}; as it should be: {same}"))
    show(capsys, "SIGKILL in a release of three devices, then recover", rows)
    assert all(outcome.endswith("should be: True") for _, _, outcome in rows)
    taken = [at for how, at, _ in rows if how == "before" and not at.startswith(("record", "remove", "("))]
    assert len(taken) == RELEASE_STEPS


def test_signals_undo_the_claim_at_each_step(
    plan: ClaimPlan, state: Callable[[], State], capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM and SIGINT by turns; they take effect, and need no recovery."""
    before, rows = state(), []
    ends = {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 128 + signal.SIGINT}
    numbers = itertools.cycle(ends)
    for at in itertools.count(1, 2):
        number = next(numbers)
        run = cut_off(plan.apply, at, partial(interrupt, number))
        if not run.at:
            break
        same = state() == before and journal.entries(journal.RUN) == []
        rows.append((number.name, run.at, f"ended by it: {run.status == ends[number]}; as before: {same}"))
    recover()  # the last claim, which was not interrupted
    show(capsys, "SIGTERM and SIGINT in a claim of three devices", rows)
    assert len(rows) == CLAIM_STEPS
    assert {outcome for _, _, outcome in rows} == {"ended by it: True; as before: True"}


def test_signal_waits_for_the_end_of_a_release(plan: ClaimPlan, state: Callable[[], State]) -> None:
    before = state()
    plan.apply(keep=True)
    run = cut_off(release, 3, partial(interrupt, signal.SIGTERM))
    assert run.at
    assert run.status == -signal.SIGTERM
    assert state() == before
    assert journal.entries(journal.RUN) == []


def test_signal_that_comes_when_the_claim_is_made(alone: HostDevice, state: Callable[[], State]) -> None:
    """As late as it can: nobody has the claim yet, so it is given back."""
    before = state()

    class Late(Claim):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            os.kill(os.getpid(), signal.SIGINT)

    def work() -> None:
        from pyiommufd.host.claims import claim as module

        module.Claim = Late  # type: ignore[assignment,misc]
        plan_claim(alone).apply()

    assert cut_off(work, -1, die).status == 128 + signal.SIGINT
    assert state() == before
    assert journal.entries(journal.RUN) == []
