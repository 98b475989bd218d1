"""Kept claims and what belongs to them, on a machine whose devices are on vfio already: no driver has to move."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import ClaimError, ClaimPlan, ClaimRefusedError, CloseError, plan_claim
from pyiommufd.host import access, durable
from pyiommufd.host.claims import journal, steps
from pyiommufd.host.kept import keeping
from pyiommufd.host.kept import record as kept_record
from pyiommufd.host.kept.keeping import claim_persistent, claim_persistent_steps, keep, keep_steps, recover, release
from pyiommufd.host.persistent import boot_unit, claim_file
from pyiommufd.host.users import User
from tests.fake_sysfs import FakeSysfs

NAMES = ("0000:00:02.0", "0000:00:03.0")
ALICE = User("alice", 70001)
BOARD: dict[str, Any] = {"subsystem_vendor": "0x1af4", "subsystem_device": "0x1100", "revision": "0x02"}


@pytest.fixture(autouse=True)
def machine(fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    """Two devices, each alone in its group and on vfio-pci, on a machine with systemd."""
    monkeypatch.setattr(journal, "RUN", tmp_path / "run")
    monkeypatch.setattr(claim_file, "FOLDER", tmp_path / "etc/claims.d")
    monkeypatch.setattr(boot_unit, "FOLDER", tmp_path / "system")
    monkeypatch.setattr(boot_unit, "has_systemd", lambda: True)
    monkeypatch.setattr("shutil.which", lambda *what, **where: None)  # this machine's systemctl is left alone
    fake.pci(NAMES[0], group=2, driver="vfio-pci", cdev=0, **BOARD)
    fake.pci(NAMES[1], group=3, driver="vfio-pci", cdev=1, ids=(0x8086, 0x10FB), **BOARD)
    return fake


def reboot() -> None:
    """What a boot forgets."""
    shutil.rmtree(journal.RUN, ignore_errors=True)


def there() -> list[str]:
    """What there is of kept claims, wherever it is on record."""
    found = [f"journal: {entry.state}" for entry in journal.entries(journal.RUN)]
    found += [f"record: {record.stage}" for record in kept_record.records()]
    found += [file.name for file in claim_file.FOLDER.glob("*")]
    return found + [path.name for path in (boot_unit.file(), boot_unit.link()) if path.is_symlink() or path.exists()]


WHOLE = ["journal: kept", "record: kept", f"{NAMES[0]}.toml", boot_unit.NAME, boot_unit.NAME]


def test_what_is_shown_is_what_is_done() -> None:
    plan = plan_claim(NAMES[0])
    shown = keep_steps(plan, persist=True)
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
    shown, done = keeping.release_steps([NAMES[0]]), []
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
    assert there() == ["journal: kept"]
    with pytest.raises(ClaimRefusedError, match="claimed already"):
        keep(plan_claim(NAMES[0]), persist=True)
    assert there() == ["journal: kept"]
    release()
    assert there() == []


def test_unit_stays_as_long_as_there_is_a_claim_for_it() -> None:
    for name in NAMES:
        keep(plan_claim(name), persist=True)
    assert [str(step) for step in keeping.release_steps([NAMES[1]])] == [f"{claim_file.FOLDER}/{NAMES[1]}.toml: remove"]
    release([NAMES[1]])
    assert boot_unit.is_installed()
    release([NAMES[0]])
    assert there() == []


def test_claims_are_made_again_at_boot() -> None:
    for name in NAMES:
        keep(plan_claim(name), persist=True)
    reboot()
    assert [outcome.devices for outcome in claim_persistent_steps()] == [(name,) for name in NAMES]
    assert [outcome.error for outcome in claim_persistent()] == [None, None]
    assert [entry.wanted for entry in journal.entries(journal.RUN)] == [[name] for name in NAMES]
    # Once more changes nothing.
    assert [outcome.there for outcome in claim_persistent()] == [True, True]
    assert len(journal.entries(journal.RUN)) == 2
    release([NAMES[0]])
    reboot()
    assert [outcome.devices for outcome in claim_persistent()] == [(NAMES[1],)]
    release()
    assert there() == []


def test_boot_that_does_not_find_a_device(machine: FakeSysfs) -> None:
    for name in NAMES:
        keep(plan_claim(name), persist=True)
    reboot()
    (machine.root / "bus/pci/devices" / NAMES[0]).unlink()
    lost, found = claim_persistent()
    assert "no device has its ids" in str(lost.error)
    assert found.error is None
    assert [entry.wanted for entry in journal.entries(journal.RUN)] == [[NAMES[1]]]
    assert len(claim_file.files()) == 2  # it may come back
    # By the name that it had; there is no other way to call it.
    release([NAMES[0]])
    assert [file.stem for file in claim_file.files()] == [NAMES[1]]
    release()


def test_user_of_a_persistent_claim_who_has_gone() -> None:
    keep(plan_claim(NAMES[0]), persist=True)
    (file,) = claim_file.files()
    file.write_text(file.read_text().replace("force = []", 'force = []\nuser = "no such user"'))
    reboot()
    (outcome,) = claim_persistent()
    assert "no such user" in str(outcome.error)
    assert journal.entries(journal.RUN) == []


def test_release_of_what_nobody_has_claimed() -> None:
    keep(plan_claim(NAMES[0]))
    for name in (NAMES[1], "0000:00:09.0"):
        with pytest.raises(Exception, match=name.replace(".", r"\.")):
            release([NAMES[0], name])
    assert there() == ["journal: kept"]
    release()


def test_claim_that_somebody_else_released() -> None:
    """Through the library, which knows of drivers alone."""
    claim = keep(plan_claim(NAMES[0]), persist=True)
    claim.release()
    assert there() == ["record: kept", *WHOLE[2:]]
    recover()
    assert there() == WHOLE[2:]
    release()
    assert there() == []


def test_record_of_somebody_else_is_named() -> None:
    keep(plan_claim(NAMES[0]))
    (journal.RUN / "kept").mkdir(exist_ok=True)
    (journal.RUN / "kept/x.json").write_text("{}")
    with pytest.raises(ClaimError, match=r"x\.json is no record"):
        release()


@pytest.fixture
def iommu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node that stands for /dev/iommu; that of the device is not there."""
    node = tmp_path / "iommu"
    try:
        os.mknod(node, stat.S_IFCHR | 0o660, os.makedev(1, 3))
        access.granted(node, ALICE.uid)
    except OSError:
        pytest.skip("this takes the right to make nodes")
    monkeypatch.setattr(keeping, "IOMMU_NODE", node)
    return node


def test_node_that_is_not_there_fails_the_whole_claim(iommu: Path) -> None:
    mode = iommu.stat().st_mode
    done: list[str] = []
    with pytest.raises(ClaimError, match=r"rolled back: there is no node /dev/vfio/devices/vfio0 of 0000:00:02\.0"):
        keep(plan_claim(NAMES[0]), persist=True, user=ALICE, report=lambda step: done.append(str(step)))
    assert done == [
        f"{iommu}: let alice open it",
        f"{NAMES[0]}: let alice open it",
        f"{iommu}: no longer let alice open it",
    ]
    assert there() == []
    assert iommu.stat().st_mode == mode


def test_unit_that_cannot_be_written_fails_the_whole_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(boot_unit, "FOLDER", tmp_path / "file/system")
    with pytest.raises(ClaimError, match="the claim failed and was rolled back: cannot install"):
        keep(plan_claim(NAMES[0]), persist=True)
    assert there() == []


def test_report_that_fails_ends_the_claim() -> None:
    def report(step: object) -> None:
        raise ZeroDivisionError(step)

    with pytest.raises(ZeroDivisionError):
        keep(plan_claim(NAMES[0]), persist=True, report=report)
    assert there() == []


def test_report_that_fails_does_not_end_a_release() -> None:
    """The connection has broken, say: the files go all the same."""
    for name in NAMES:
        keep(plan_claim(name), persist=True)

    def report(step: object) -> None:
        raise BrokenPipeError(step)

    release(report=report)
    assert there() == []


@pytest.mark.parametrize("persist", [False, True])
def test_signal_at_the_very_end_undoes_the_claim(persist: bool) -> None:
    """After the last step, where nothing else would notice it."""

    def signalled(*arguments: Any, **options: Any) -> Any:
        claim = apply(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return claim

    plan, apply = plan_claim(NAMES[0]), ClaimPlan.apply
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ClaimPlan, "apply", signalled)
            with pytest.raises(ClaimError, match="interrupted by SIGTERM"):
                keep(plan, persist=persist)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert there() == []


def no_room(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """There is no room to record this."""
    cross = steps.cross

    def full(name: str, change: Callable[[], None]) -> None:
        if what in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        cross(name, change)

    monkeypatch.setattr(steps, "cross", full)


def test_claim_at_boot_that_cannot_be_recorded_stays_to_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(plan_claim(NAMES[0]), persist=True)
    reboot()
    with monkeypatch.context() as context:
        no_room(context, "record the kept claim as kept")
        (outcome,) = claim_persistent()
    assert "rolled back" in str(outcome.error)
    assert "No space left" in str(outcome.error)
    assert there() == [f"{NAMES[0]}.toml", boot_unit.NAME, boot_unit.NAME]
    assert claim_persistent()[0].error is None
    release()


@pytest.mark.parametrize("persist", [False, True])
def test_claim_whose_last_word_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch, persist: bool) -> None:
    with monkeypatch.context() as context:
        no_room(context, "record the claim as kept")
        with pytest.raises(ClaimError, match=r"rolled back: .*No space left"):
            keep(plan_claim(NAMES[0]), persist=persist)
    assert there() == []


def test_release_that_cannot_be_recorded_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = keep(plan_claim(NAMES[0]))
    with monkeypatch.context() as context:
        no_room(context, "record the release")
        with pytest.raises(ClaimError, match=r"nothing is given back.*No space left"):
            claim.release()
    assert there() == ["journal: kept"]
    claim.release()
    assert there() == []


def test_typing_error_in_a_file_hinders_no_other() -> None:
    for name in NAMES:
        keep(plan_claim(name), persist=True)
    file = claim_file.files()[0]
    file.write_text(file.read_text().replace("force = []", 'force = ["mountd"]'))
    reboot()
    wrong, right = claim_persistent()
    assert "force names mountd" in str(wrong.error)
    assert right.error is None
    release()


def test_claim_of_a_device_that_cannot_be_told_is_released_by_its_name(machine: FakeSysfs) -> None:
    """Another card of its kind has come, in whichever slot."""
    keep(plan_claim(NAMES[0]), persist=True)
    reboot()
    machine.pci("0000:00:05.0", group=5, **BOARD)
    (outcome,) = claim_persistent()
    assert "cannot be told for certain" in str(outcome.error)
    with pytest.raises(ClaimError, match="is claimed at boot already"):
        keep(plan_claim(NAMES[0]), persist=True)
    release([NAMES[0]])
    assert there() == []


def test_user_is_given_what_gets_a_node(machine: FakeSysfs) -> None:
    """Not a member that stays on pci-stub, where somebody has put it."""
    machine.pci("0000:00:02.1", group=2, driver="pci-stub", **BOARD)
    shown = [str(step) for step in keep_steps(plan_claim(NAMES[0]), user=ALICE)]
    assert shown == ["/dev/iommu: let alice open it", f"{NAMES[0]}: let alice open it"]


def test_failure_of_a_release_leaves_the_rest_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(plan_claim(NAMES[0]), persist=True)

    def refuse(file: Path) -> None:
        raise ClaimError(f"cannot remove {file}")

    with monkeypatch.context() as context:
        context.setattr(claim_file, "forget", refuse)
        with pytest.raises(CloseError, match="cannot remove"):
            release()
    assert "journal: kept" not in there()
    assert "record: releasing" in there()
    recover()
    assert there() == []


def cut_off(work: Callable[[], Any], at: int) -> str:
    """Run something in a child that is killed before its change of that number. Returns what that was."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        count, cross = itertools.count(), steps.cross

        def counted(what: str, change: Callable[[], None]) -> None:
            if next(count) == at:
                os.write(writer, what.encode())
                os.kill(os.getpid(), signal.SIGKILL)
            cross(what, change)

        steps.cross = counted
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as pipe:
        what = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if what else 0)
    return what


def cuts(work: Callable[[], Any], prepare: Callable[[], Any]) -> Iterator[str]:
    """Each change of some work at which it is cut off; at last none."""
    for at in itertools.count():
        prepare()
        what = cut_off(work, at)
        yield what
        if not what:
            return


def test_claim_that_is_killed_at_each_step() -> None:
    seen = []
    for what in cuts(lambda: keep(plan_claim(NAMES[0]), persist=True), release):
        recover()
        assert there() == ([] if what else WHOLE), what
        seen.append(what)
    assert sum("claims.d" in what for what in seen) == 1
    assert sum(boot_unit.NAME in what for what in seen) == 2


def test_release_that_is_killed_at_each_step() -> None:
    def prepare() -> None:
        if not there():
            keep(plan_claim(NAMES[0]), persist=True)

    for number, what in enumerate(cuts(release, prepare)):
        recover()
        # Before its first word is on record there is no release.
        assert there() == (WHOLE if not number else []), what


def test_power_cut_at_each_step_of_a_claim() -> None:
    made = False
    for what in cuts(lambda: keep(plan_claim(NAMES[0]), persist=True), release):
        reboot()
        assert [outcome.error for outcome in claim_persistent()] in ([], [None])
        # The file is the last of it: as soon as it is there the claim is.
        assert there() == (WHOLE if made else []), what
        made = made or "claims.d" in what


def test_power_cut_at_each_step_of_a_release() -> None:
    removed = False

    def prepare() -> None:
        if not there():
            keep(plan_claim(NAMES[0]), persist=True)

    for what in cuts(release, prepare):
        reboot()
        assert [outcome.error for outcome in claim_persistent()] in ([], [None])
        assert there() == ([] if removed else WHOLE), what
        removed = removed or "claims.d" in what


def test_files_that_were_not_finished_go() -> None:
    for path in (boot_unit.file(), claim_file.FOLDER / "x.toml"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + durable.DRAFT).write_text("hal")
        (path.parent / "mine").write_text("somebody else's")
    recover()
    assert sorted(path.name for path in boot_unit.FOLDER.iterdir()) == ["mine"]
    assert sorted(path.name for path in claim_file.FOLDER.iterdir()) == ["mine"]


def test_claim_made_anew_where_one_died_at_its_first_step() -> None:
    """What recover then undoes is the dead one's, not the new one, which is of the same device and name."""
    assert cut_off(lambda: keep(plan_claim(NAMES[0]), persist=True), 1)
    keep(plan_claim(NAMES[0]), persist=True)
    recover()
    assert there() == [*WHOLE[:2], f"{NAMES[0]}-2.toml", *WHOLE[3:]]
    release()
    assert there() == []
