"""A kept claim with all that it can have, cut off at each of its steps: whole afterwards, or not there at all."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pyiommufd import ClaimError, HostDevice, plan_claim, recover, release
from pyiommufd.cli.group import cli
from pyiommufd.host import durable
from pyiommufd.host.claims import access, journal
from pyiommufd.host.claims.record import DeviceState
from pyiommufd.host.claims.transaction import IOMMU_NODE
from pyiommufd.host.persistent import boot_unit, claim_file
from pyiommufd.host.users import find_user
from tests.dry_run import dry_run
from tests.guest.claims.test_kill import Point, cut_off, die, show
from tests.sweeps import sample

State = dict[str, DeviceState]
Options = dict[str, Any]
USER = find_user("nobody")
WAYS: list[Options] = [{"user": USER}, {"persist": True}, {"persist": True, "user": USER}]
"""What a kept claim can have besides its devices; `test_kill` has those that have nothing."""


@pytest.fixture(autouse=True)
def systemd() -> Iterator[None]:
    folder = Path("/run/systemd/system")
    folder.mkdir(parents=True)
    yield
    release()
    shutil.rmtree(folder)


@pytest.fixture
def everything(state: Callable[[], State]) -> Callable[[], Any]:
    """All that such a claim changes, and the records of it."""

    def everything() -> Any:
        files = [path for folder in (claim_file.FOLDER, boot_unit.FOLDER) for path in folder.rglob("*")]
        return (
            state(),
            access.granted(IOMMU_NODE, USER.uid),
            IOMMU_NODE.stat().st_mode,
            sorted(str(path) for path in files if not path.is_dir()),
            [entry.id for entry in journal.records()],
        )

    return everything


def die_in_the_file(what: str) -> None:
    """Die when the new text is written, and not yet on disk under its name."""
    if not is_write(what):
        die()
    os.fsync = die


def is_write(what: str) -> bool:
    """Whether a change writes a file of /etc."""
    return what.startswith("write /etc") or (what.startswith("/etc") and what.endswith(": write"))


def points(changes: list[str]) -> list[Point]:
    """Before each of the changes that an uncut run has made, and during the writing of each file of /etc."""
    found = []
    for at, what in enumerate(changes):
        found.append(Point("before", at, what))
        if is_write(what):
            found.append(Point("during", at, what))
    return found


def kill_at(point: Point, work: Callable[[], Any]) -> None:
    """Run something in a child that is killed there."""
    run = cut_off(work, point.at, die if point.how == "before" else die_in_the_file)
    assert run.was_killed_at(point), (point, run.status, run.changes)


def keep(device: HostDevice, options: Options) -> None:
    plan_claim(device).apply(keep=True, **options)


def recovered(number: int = 0) -> str:
    """Recover, by turns from Python and by command, as the dry run says, and say what that was."""
    dry = [str(step) for step in dry_run(recover)]
    if number % 2:
        result = CliRunner().invoke(cli, ["recover"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        taken = result.stdout.splitlines()
    else:
        taken = []
        recover(report=lambda step: taken.append(str(step)))
    assert taken == dry
    return f"recovered in {len(taken)} steps"


@pytest.mark.long
@pytest.mark.parametrize("options", WAYS)
def test_kept_claim_that_is_killed_at_each_step(
    rng: HostDevice, everything: Callable[[], Any], capsys: pytest.CaptureFixture[str], options: Options
) -> None:
    durable.make_folder(boot_unit.link().parent)
    before = everything()
    rows: list[tuple[str, str, str]] = []
    whole = cut_off(lambda: keep(rng, options))
    assert whole.status == 0
    assert recovered() == "recovered in 0 steps"
    assert rng.refreshed().driver == "vfio-pci"
    assert len(claim_file.files()) == int(options.get("persist", False))
    assert boot_unit.is_installed() == options.get("persist", False)
    release()
    assert everything() == before
    every = points(whole.changes)
    grants = [what for how, _, what in every if how == "before" and what.endswith(": let nobody open it")]
    assert len([what for what in grants if "next" not in what]) == (2 if "user" in options else 0)
    assert sum(is_write(what) for _, _, what in every) == (4 if "persist" in options else 0)
    for number, point in enumerate(sample(f"claims.kept_kill[claim {'+'.join(options)}]", every, 3)):
        kill_at(point, lambda: keep(rng, options))
        outcome = recovered(number)
        rows.append((point.how, point.what, f"{outcome}; as before: {everything() == before}"))
    show(capsys, f"SIGKILL in a kept claim with {' and '.join(options)}, then recover", rows)
    assert all(outcome.endswith("as before: True") for _, _, outcome in rows)


@pytest.mark.long
@pytest.mark.parametrize("options", WAYS)
def test_release_of_it_that_is_killed_at_each_step(
    rng: HostDevice, everything: Callable[[], Any], capsys: pytest.CaptureFixture[str], options: Options
) -> None:
    durable.make_folder(boot_unit.link().parent)
    before = everything()
    rows: list[tuple[str, str, str]] = []
    keep(rng, options)
    whole = cut_off(release)
    assert whole.status == 0
    assert recovered() == "recovered in 0 steps"
    assert everything() == before
    every = points(whole.changes)
    for number, point in enumerate(sample(f"claims.kept_kill[release {'+'.join(options)}]", every, 3)):
        if not journal.records():
            keep(rng, options)
        kept = everything()
        kill_at(point, release)
        outcome, after = recovered(number), everything()
        rows.append((point.how, point.what, f"{outcome}; {'whole' if after == kept else after == before}"))
        # Before the first word of it is on record there is no release.
        assert after == (before if point.at else kept)
    show(capsys, f"SIGKILL in the release of one with {' and '.join(options)}, then recover", rows)


@pytest.mark.long
@pytest.mark.parametrize("options", WAYS)
def test_claim_for_which_there_is_no_room_at_each_step(
    rng: HostDevice, everything: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, options: Options
) -> None:
    """On the disk of the record, or of /etc: the claim is undone at once, without a recovery."""
    durable.make_folder(boot_unit.link().parent)
    before = everything()
    whole = cut_off(lambda: keep(rng, options))
    release()
    written = [at for at, what in enumerate(whole.changes) if what.startswith("record") or is_write(what)]
    commit = durable.commit
    for at in sample(f"claims.kept_kill[no room {'+'.join(options)}]", written, 3):
        count = itertools.count()

        def full(what: str, change: Callable[[], None], at: int = at, count: itertools.count[int] = count) -> None:
            if next(count) == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            commit(what, change)

        monkeypatch.setattr(durable, "commit", full)
        with pytest.raises((ClaimError, OSError), match="No space left"):
            keep(rng, options)
        monkeypatch.setattr(durable, "commit", commit)
        recover()
        assert everything() == before, whole.changes[at]
