"""A kept claim with all that it can have, cut off at each of its steps: whole afterwards, or not there at all."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import HostDevice, plan_claim
from pyiommufd.host import access, durable
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.journal import Before
from pyiommufd.host.kept import keeping
from pyiommufd.host.kept import record as kept_record
from pyiommufd.host.persistent import boot_unit, claim_file
from pyiommufd.host.users import find_user
from tests.guest.claims.test_kill import Point, cut_off, die, show
from tests.sweeps import sample

State = dict[str, Before]
USER = find_user("nobody")


@pytest.fixture(autouse=True)
def systemd() -> Iterator[None]:
    folder = Path("/run/systemd/system")
    folder.mkdir(parents=True)
    yield
    keeping.release()
    shutil.rmtree(folder)


@pytest.fixture
def everything(state: Callable[[], State]) -> Callable[[], Any]:
    """All that such a claim changes, and the records of it."""

    def everything() -> Any:
        files = [path for folder in (claim_file.FOLDER, boot_unit.FOLDER) for path in folder.rglob("*")]
        return (
            state(),
            access.granted(keeping.IOMMU_NODE, USER.uid),
            keeping.IOMMU_NODE.stat().st_mode,
            sorted(str(path) for path in files if not path.is_dir()),
            [entry.id for entry in journal.entries(journal.RUN)],
            [record.id for record in kept_record.records()],
        )

    return everything


def die_in_the_file(what: str) -> None:
    """Die when the new text is written, and not yet on disk under its name."""
    if not what.startswith(("write", "record the kept", "record that comes")):
        die()
    os.fsync = die


def points(changes: list[str]) -> list[Point]:
    """Before each of the changes that an uncut run has made, and during the writing of each file of /etc."""
    found = []
    for at, what in enumerate(changes):
        found.append(Point("before", at, what))
        if what.startswith("write"):
            found.append(Point("during", at, what))
    return found


def kill_at(point: Point, work: Callable[[], Any]) -> None:
    """Run something in a child that is killed there."""
    run = cut_off(work, point.at, die if point.how == "before" else die_in_the_file)
    assert run.was_killed_at(point), (point, run.status, run.changes)


def keep(device: HostDevice) -> None:
    keeping.keep(plan_claim(device), persist=True, user=USER)


def recovered() -> str:
    taken: list[str] = []
    dry = [str(step) for step in keeping.recover_steps()]
    names = keeping.recover(report=lambda step: taken.append(str(step)))
    assert taken == dry
    return f"recovered {len(names)} devices in {len(taken)} steps"


@pytest.mark.long
def test_kept_claim_that_is_killed_at_each_step(
    rng: HostDevice, everything: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    durable.make_folder(boot_unit.link().parent)
    before = everything()
    rows: list[tuple[str, str, str]] = []
    whole = cut_off(lambda: keep(rng))
    assert whole.status == 0
    assert recovered() == "recovered 0 devices in 0 steps"
    assert rng.refreshed().driver == "vfio-pci"
    assert len(claim_file.files()) == 1
    assert boot_unit.is_installed()
    keeping.release()
    assert everything() == before
    every = points(whole.changes)
    assert sum("let nobody open it" in what for _, _, what in every) == 2
    assert sum(what.startswith("write /etc") for _, _, what in every) == 4
    for point in sample("claims.kept_kill[claim]", every, 4):
        kill_at(point, lambda: keep(rng))
        outcome = recovered()
        rows.append((point.how, point.what, f"{outcome}; as before: {everything() == before}"))
    show(capsys, "SIGKILL in claim --persist --user, then recover", rows)
    assert all(outcome.endswith("as before: True") for _, _, outcome in rows)


@pytest.mark.long
def test_release_of_it_that_is_killed_at_each_step(
    rng: HostDevice, everything: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    durable.make_folder(boot_unit.link().parent)
    before = everything()
    rows: list[tuple[str, str, str]] = []
    keep(rng)
    whole = cut_off(keeping.release)
    assert whole.status == 0
    assert recovered() == "recovered 0 devices in 0 steps"
    assert everything() == before
    every = points(whole.changes)
    assert sum("no longer let nobody open it" in what for _, _, what in every) == 2
    for point in sample("claims.kept_kill[release]", every, 4):
        if not claim_file.files():
            keep(rng)
        kept = everything()
        kill_at(point, keeping.release)
        outcome, after = recovered(), everything()
        rows.append((point.how, point.what, f"{outcome}; {'whole' if after == kept else after == before}"))
        # Before the first word of it is on record there is no release.
        assert after == (before if point.at else kept)
    show(capsys, "SIGKILL in the release of it, then recover", rows)


@pytest.mark.long
def test_claim_made_anew_where_one_died_at_its_first_step(rng: HostDevice, everything: Callable[[], Any]) -> None:
    """What recover then undoes is the dead one's, not the new one, which is of the same device and name."""
    durable.make_folder(boot_unit.link().parent)
    before = everything()
    assert cut_off(lambda: keep(rng), 1, die).status == -signal.SIGKILL
    keep(rng)
    whole = everything()[:4]
    assert recovered() == "recovered 0 devices in 0 steps"
    assert everything()[:4] == whole
    keeping.release()
    assert everything() == before
