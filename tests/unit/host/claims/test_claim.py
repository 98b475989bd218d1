"""Claims that are made and kept: what is shown is what is done, and what fails is undone."""

from __future__ import annotations

import os
import re
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from pyiommufd import ClaimError, ClaimRefusedError, DeviceNotFoundError, plan_claim, recover, release
from pyiommufd.errors import Fix
from pyiommufd.host import durable
from pyiommufd.host.claims import access, journal, transaction
from pyiommufd.host.claims.claim import claim_steps
from pyiommufd.host.claims.steps import Action, Step
from pyiommufd.host.persistent import boot_unit, claim_file
from pyiommufd.host.users import User
from tests.dry_run import dry_run
from tests.fake_sysfs import FakeSysfs
from tests.unit.host.claims.kept import BOARD, NAMES, WHOLE, keep, no_room, there

pytestmark = pytest.mark.usefixtures("vfio_machine")

ALICE = User("alice", 70001)


def test_what_is_shown_is_what_is_done() -> None:
    plan = plan_claim(NAMES[0])
    shown = claim_steps(plan, persist=True)
    assert there() == []
    done: list[object] = []
    assert keep(plan, persist=True, report=done.append).kept
    assert done == list(shown)
    assert list(map(str, done)) == [
        f"{boot_unit.file()}: write and enable",
        f"{claim_file.FOLDER}/{NAMES[0]}.toml: write",
    ]
    assert there() == WHOLE
    assert recover() == []
    assert there() == WHOLE
    shown, done = dry_run(release, [NAMES[0]]), []
    assert there() == WHOLE
    release([NAMES[0]], report=done.append)
    assert done == list(shown)
    assert list(map(str, done)) == [
        f"{claim_file.FOLDER}/{NAMES[0]}.toml: remove",
        f"{boot_unit.file()}: disable and remove",
    ]
    assert there() == []


def test_plain_claim_leaves_nothing_but_the_journal() -> None:
    keep(plan_claim(NAMES[0]))
    assert there() == ["record: kept"]
    with pytest.raises(ClaimRefusedError, match="claimed already"):
        keep(plan_claim(NAMES[0]), persist=True)
    assert there() == ["record: kept"]
    release()
    assert there() == []


def test_object_gives_back_all_that_the_claim_has() -> None:
    claim = keep(plan_claim(NAMES[0]), persist=True)
    assert there() == WHOLE
    claim.release()
    assert there() == []


@pytest.fixture
def iommu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node that stands for /dev/iommu; that of the device is not there."""
    node = tmp_path / "iommu"
    try:
        os.mknod(node, stat.S_IFCHR | 0o660, os.makedev(1, 3))
        access.granted(node, ALICE.uid)
    except OSError:
        pytest.skip("this takes the right to make nodes")
    monkeypatch.setattr(transaction, "IOMMU_NODE", node)
    return node


def test_node_that_is_not_there_fails_the_whole_claim(iommu: Path) -> None:
    mode = iommu.stat().st_mode
    done: list[str] = []
    with pytest.raises(ClaimError, match=r"rolled back: there is no node /dev/vfio/devices/vfio0 of 0000:00:02\.0"):
        keep(plan_claim(NAMES[0]), persist=True, user=ALICE, report=lambda step: done.append(str(step)))
    assert done == [
        f"{iommu}: let alice open it",
        f"{iommu}: no longer let alice open it",
    ]
    assert there() == []
    assert iommu.stat().st_mode == mode


def test_user_is_given_what_was_asked_for(vfio_machine: FakeSysfs) -> None:
    """Not another member of the group, whatever it is on."""
    vfio_machine.pci("0000:00:02.1", group=2, driver="pci-stub", **BOARD)
    vfio_machine.pci("0000:00:02.2", group=2, driver="vfio-pci", cdev=2, **BOARD)
    shown = [str(step) for step in claim_steps(plan_claim(NAMES[0]), user=ALICE)]
    assert shown == ["/dev/iommu: let alice open it", f"{NAMES[0]}: let alice open it"]


@pytest.mark.parametrize("user", [0, "0", "root"])
def test_user_by_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: int | str) -> None:
    monkeypatch.setattr(transaction, "IOMMU_NODE", tmp_path / "iommu")
    with pytest.raises(ClaimError, match=r"no node .*/iommu that root could be given"):
        plan_claim(NAMES[0]).apply(keep=True, user=user)


@pytest.mark.parametrize(("module", "suffix"), [(boot_unit, "service"), (claim_file, "toml")])
def test_file_that_cannot_be_written_fails_the_whole_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, suffix: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "FOLDER", tmp_path / "file/folder")
    with pytest.raises(ClaimError, match=rf"rolled back: .*/file/folder/.*\.{suffix}: write.*: File exists"):
        keep(plan_claim(NAMES[0]), persist=True)
    assert there() == []


def test_report_that_fails_ends_the_claim() -> None:
    def report(step: object) -> None:
        raise ZeroDivisionError(step)

    with pytest.raises(ZeroDivisionError):
        keep(plan_claim(NAMES[0]), persist=True, report=report)
    assert there() == []


class SignalledError(Exception):
    pass


@pytest.mark.parametrize("persist", [False, True])
def test_signal_at_the_very_end_undoes_the_claim(monkeypatch: pytest.MonkeyPatch, persist: bool) -> None:
    """After the last word of the record, where no step notices it any more."""
    commit = durable.commit

    def signalled(what: str, change: Callable[[], None]) -> None:
        commit(what, change)
        if what == "record the claim as kept":
            os.kill(os.getpid(), signal.SIGTERM)

    def end(*_: object) -> None:
        raise SignalledError

    monkeypatch.setattr(durable, "commit", signalled)
    handler = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(SignalledError):
            keep(plan_claim(NAMES[0]), persist=persist)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert there() == []


@pytest.mark.parametrize("persist", [False, True])
def test_claim_whose_last_word_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch, persist: bool) -> None:
    with monkeypatch.context() as context:
        no_room(context, "record the claim as kept")
        with pytest.raises(ClaimError, match=r"rolled back: .*No space left"):
            keep(plan_claim(NAMES[0]), persist=persist)
    assert there() == []


@pytest.mark.parametrize("gone", [False, True])
def test_what_a_roll_back_leaves_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch, gone: bool) -> None:
    def fail(self: transaction.Transaction, step: Step, name: str = "") -> None:
        del self, name
        if step.action is Action.DISABLE:
            raise ClaimError("the unit stays", Fix("recover()", "pyiommufd recover"))
        if step.action is Action.WRITE and gone:
            raise DeviceNotFoundError("it has gone")

    with monkeypatch.context() as context:
        context.setattr(transaction.Transaction, "_check_unused", fail)
        no_room(context, "record the claim as kept")
        with pytest.raises(ClaimError, match="not all of it could be rolled back") as caught:
            keep(plan_claim(NAMES[0]), persist=True)
    why = "it has gone" if gone else "No space left"
    left = "the roll-back left something undone: not everything could be given back to the host:\n  the unit stays"
    assert re.search(rf"{why}.*; recover\(\) completes it\n{left}; recover\(\)$", str(caught.value))
    assert re.search(
        rf"{why}.*; pyiommufd recover completes it\n{left}; pyiommufd recover$", caught.value.for_command()
    )
    recover()
    assert there() == []


def test_object_of_a_claim_that_a_newer_version_has_taken_over() -> None:
    claim = keep(plan_claim(NAMES[0]))
    (record,) = journal.records()
    path = journal.RUN / f"{record.id}.json"
    ours = path.read_text()
    path.write_text(ours.replace('"version": 2', '"version": 3'))
    with pytest.raises(ClaimError, match="a newer pyiommufd: use that one"):
        claim.release()
    assert not claim.released
    path.write_text(ours)
    claim.release()
