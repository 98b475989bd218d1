"""Address spaces, page tables and devices in random order, against a model and the mock IOMMU's own page check.

PYIOMMUFD_STRESS_STEPS says how many steps there are, PYIOMMUFD_STRESS_SEED which, both instead of what the sample does:
what fails is printed as a program, and comes again with the same seed.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    rule,
    run_state_machine_as_test,
)

from pyiommufd.testing.checks.leaks import LeakCheck
from tests import sweeps
from tests.guest.stress.actions import NO_ACTION, Action, actions_of
from tests.guest.stress.bench import MockMachine
from tests.guest.stress.model import Area

STEPS_A_RUN = 200
# PYIOMMUFD_STRESS_SHRINK: look for the shortest program that fails, which takes many minutes.
PHASES = tuple(Phase) if os.environ.get("PYIOMMUFD_STRESS_SHRINK") else (Phase.generate,)

ACTIONS = actions_of(MockMachine)
NAMES = sorted(name for name, method in vars(MockMachine).items() if hasattr(method, "kinds"))


class Machine(MockMachine):
    """All of it in random order; what is made is closed again."""

    def __init__(self) -> None:
        super().__init__()
        self.without: set[str] = set()

    @initialize(without=st.sets(st.sampled_from(NAMES), max_size=4))
    def start(self, without: set[str]) -> None:
        """Each run does without some of the actions: what is rare beside them is not, then."""
        self.without = without
        self.create_objects()

    @rule(action=ACTIONS)
    def act(self, action: Action) -> None:
        if action is not NO_ACTION and action.name not in self.without:
            getattr(self, action.name)(**action.arguments)


class MachineWithWrongModel(Machine):
    """A machine with a deliberate error in its model: it takes a copy of two mappings for one."""

    ran: ClassVar[Counter[str]] = Counter()

    def copy(self, to: int, of: int, start: int, count: int, at: int) -> None:
        super().copy(to, of, start, count, at)
        space = self.space(to)[1]
        found = space.touching(at, count)
        if len(found) > 1 and sum(len(area.memory) for area in found) == count:
            for area in found:
                space.areas.remove(area)
            space.areas.append(Area(at, tuple(page for area in found for page in area.memory)))


def run(machine: type[Machine], steps: int, number: int) -> None:
    machine.ran.clear()
    run_state_machine_as_test(
        seed(number)(machine),
        settings=settings(
            max_examples=-(-steps // STEPS_A_RUN),
            stateful_step_count=STEPS_A_RUN,
            phases=PHASES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )


@pytest.mark.long
def test_random_orders_agree_with_the_model() -> None:
    check = LeakCheck()
    steps = int(os.environ.get("PYIOMMUFD_STRESS_STEPS") or sweeps.amount("stress.model", 20_000, 300))
    start = int(os.environ.get("PYIOMMUFD_STRESS_SEED") or sweeps.seed("stress.model"))
    done, rounds = Counter[str](), 0
    while done.total() < steps or len(done) < len(NAMES) or min(done.values()) < steps // 40:
        print(f"PYIOMMUFD_STRESS_SEED={start + rounds}")  # pytest shows it where the test fails
        # The first of several runs is the simplest one, which does next to nothing.
        run(Machine, max(steps - done.total(), 4 * STEPS_A_RUN), start + rounds)
        done += Machine.ran
        rounds += 1
    print(f"{done.total()} steps: " + ", ".join(f"{name} {count}" for name, count in sorted(done.items())))
    assert len(NAMES) == 15
    gc.collect()  # buffers, and memoryviews of them in the frames of exceptions
    check.check()


@pytest.mark.long
def test_a_wrong_model_is_caught_and_caught_again() -> None:
    failures = []
    for _ in range(2):
        with pytest.raises(AssertionError) as caught:
            run(MachineWithWrongModel, 20_000, 20261122)  # a few hundred do
        text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
        failures.append([line.strip() for line in text.splitlines() if line.strip().startswith("state.")])
    # The program that fails is printed, and is the same one.
    assert failures[0] == failures[1] != []
