"""A kept claim with all that it can have, cut off at each of its steps: whole afterwards, or not there at all."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import HostDevice, plan_claim
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.journal import Before
from pyiommufd.host.kept import access, boot_unit, durable, keeping, persistence
from pyiommufd.host.kept import record as kept_record
from pyiommufd.host.users import find_user
from tests.guest.claims.test_kill import CutOff, cut_off, die, show

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
        files = [path for folder in (persistence.FOLDER, boot_unit.FOLDER) for path in folder.rglob("*")]
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


def runs(work: Callable[[], Any], prepare: Callable[[], Any] = lambda: None) -> Iterator[tuple[str, CutOff]]:
    """Each change of some work at which a process can be cut off; the last is none."""
    for at in itertools.count():
        prepare()
        run = cut_off(work, at, die)
        yield "before", run
        if not run.at:
            return
        if run.at.startswith("write"):
            prepare()
            yield "during", cut_off(work, at, die_in_the_file)


def keep(device: HostDevice) -> None:
    keeping.keep(plan_claim(device), persist=True, user=USER)


def recovered() -> str:
    taken: list[str] = []
    dry = [str(step) for step in keeping.recover_steps()]
    names = keeping.recover(report=lambda step: taken.append(str(step)))
    assert taken == dry
    return f"recovered {len(names)} devices in {len(taken)} steps"


def test_kept_claim_that_is_killed_at_each_step(
    rng: HostDevice, everything: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    durable.make_folder(boot_unit.link().parent)
    before = everything()
    rows: list[tuple[str, str, str]] = []
    for how, run in runs(lambda: keep(rng)):
        assert run.status == (-signal.SIGKILL if run.at else 0)
        outcome = recovered()
        if not run.at:
            assert outcome == "recovered 0 devices in 0 steps"
            assert rng.refreshed().driver == "vfio-pci"
            assert len(persistence.files()) == 1
            assert boot_unit.is_installed()
            break
        rows.append((how, run.at, f"{outcome}; as before: {everything() == before}"))
    show(capsys, "SIGKILL in claim --persist --user, then recover", rows)
    assert all(outcome.endswith("as before: True") for _, _, outcome in rows)
    assert sum("let nobody open it" in at for _, at, _ in rows) == 2
    assert sum(at.startswith("write /etc") for _, at, _ in rows) == 4


def test_release_of_it_that_is_killed_at_each_step(
    rng: HostDevice, everything: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    durable.make_folder(boot_unit.link().parent)
    before = everything()
    rows: list[tuple[str, str, str]] = []
    whole: list[Any] = []

    def prepare() -> None:
        if not persistence.files():
            keep(rng)
            whole[:] = [everything()]

    for how, run in runs(keeping.release, prepare):
        assert run.status == (-signal.SIGKILL if run.at else 0)
        outcome, after = recovered(), everything()
        begun = bool(rows) or not run.at
        rows.append((how, run.at or "(done)", f"{outcome}; {'whole' if after == whole[0] else after == before}"))
        # Before the first word of it is on record there is no release.
        assert after == (before if begun else whole[0])
    show(capsys, "SIGKILL in the release of it, then recover", rows)
    assert sum("no longer let nobody open it" in at for _, at, _ in rows) == 2


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
