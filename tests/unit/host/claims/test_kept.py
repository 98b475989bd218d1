"""Kept claims and what belongs to them, on a machine whose devices are on vfio already: no driver has to move."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pyiommufd import (
    Claim,
    ClaimError,
    ClaimPlan,
    ClaimRefusedError,
    CloseError,
    IOMMUFDError,
    plan_claim,
    recover,
    release,
)
from pyiommufd.host import durable
from pyiommufd.host.claims import access, at_boot, journal, transaction
from pyiommufd.host.claims.at_boot import claim_persistent
from pyiommufd.host.claims.claim import carry_out, claim_steps
from pyiommufd.host.claims.overview import list_claims
from pyiommufd.host.claims.steps import Step
from pyiommufd.host.persistent import boot_unit, claim_file
from pyiommufd.host.users import User
from tests import version_1
from tests.dry_run import dry_run
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


def keep(plan: ClaimPlan, **options: Any) -> Claim:
    return plan.apply(keep=True, **options)


def reboot() -> None:
    """What a boot forgets."""
    shutil.rmtree(journal.RUN, ignore_errors=True)


def there() -> list[str]:
    """What there is of kept claims, wherever it is on record."""
    found = [f"record: {record.state}" for record in journal.records()]
    found += [file.name for file in claim_file.FOLDER.glob("*")]
    return found + [path.name for path in (boot_unit.file(), boot_unit.link()) if path.is_symlink() or path.exists()]


WHOLE = ["record: kept", f"{NAMES[0]}.toml", boot_unit.NAME, boot_unit.NAME]


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


def test_unit_stays_as_long_as_there_is_a_claim_for_it() -> None:
    for name in NAMES:
        keep(plan_claim(name), persist=True)
    assert [str(step) for step in dry_run(release, [NAMES[1]])] == [f"{claim_file.FOLDER}/{NAMES[1]}.toml: remove"]
    release([NAMES[1]])
    assert boot_unit.is_installed()
    release([NAMES[0]])
    assert there() == []


def test_claims_are_made_again_at_boot() -> None:
    for name in NAMES:
        keep(plan_claim(name), persist=True)
    reboot()
    assert [outcome.devices for outcome in claim_persistent(dry_run=True)] == [(name,) for name in NAMES]
    assert [outcome.error for outcome in claim_persistent()] == [None, None]
    assert [entry.wanted for entry in journal.records()] == [[name] for name in NAMES]
    # Once more changes nothing.
    assert [outcome.there for outcome in claim_persistent()] == [True, True]
    assert len(journal.records()) == 2
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
    assert [entry.wanted for entry in journal.records()] == [[NAMES[1]]]
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
    assert journal.records() == []


def test_release_of_what_nobody_has_claimed() -> None:
    keep(plan_claim(NAMES[0]))
    for name in (NAMES[1], "0000:00:09.0"):
        with pytest.raises(Exception, match=name.replace(".", r"\.")):
            release([NAMES[0], name])
    assert there() == ["record: kept"]
    release()


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


def test_report_that_fails_does_not_end_a_release() -> None:
    """The connection has broken, say: the files go all the same."""
    for name in NAMES:
        keep(plan_claim(name), persist=True)

    def report(step: object) -> None:
        raise BrokenPipeError(step)

    release(report=report)
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


def no_room(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """There is no room to record this."""
    commit = durable.commit

    def full(name: str, change: Callable[[], None]) -> None:
        if what in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        commit(name, change)

    monkeypatch.setattr(durable, "commit", full)


def test_claim_at_boot_that_cannot_be_recorded_stays_to_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(plan_claim(NAMES[0]), persist=True)
    reboot()
    with monkeypatch.context() as context:
        no_room(context, "record the claim as kept")
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
    assert there() == ["record: kept"]
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
    # Whoever wrote it may want to mend it: it is named, and the rest is released.
    with pytest.raises(ClaimError, match="force names mountd"):
        release()
    assert claim_file.files() == [file]
    file.unlink()
    recover()
    assert there() == []


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


def test_user_is_given_what_was_asked_for(machine: FakeSysfs) -> None:
    """Not another member of the group, whatever it is on."""
    machine.pci("0000:00:02.1", group=2, driver="pci-stub", **BOARD)
    machine.pci("0000:00:02.2", group=2, driver="vfio-pci", cdev=2, **BOARD)
    shown = [str(step) for step in claim_steps(plan_claim(NAMES[0]), user=ALICE)]
    assert shown == ["/dev/iommu: let alice open it", f"{NAMES[0]}: let alice open it"]


def test_failure_of_a_release_leaves_the_rest_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(plan_claim(NAMES[0]), persist=True)

    def refuse(file: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))

    with monkeypatch.context() as context:
        context.setattr(durable, "remove", refuse)
        with pytest.raises(CloseError, match=r"\.toml: remove: Read-only file system"):
            release()
    assert "record: in progress" in there()
    recover()
    assert there() == []


def cut_off(work: Callable[[], Any], at: int) -> str:
    """Run something in a child that is killed before its change of that number. Returns what that was."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        count, commit = itertools.count(), durable.commit

        def counted(what: str, change: Callable[[], None]) -> None:
            if next(count) == at:
                os.write(writer, what.encode())
                os.kill(os.getpid(), signal.SIGKILL)
            commit(what, change)

        durable.commit = counted
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


def is_write(what: str) -> bool:
    return what == f"{claim_file.FOLDER / NAMES[0]}.toml: write"


def test_claim_that_is_killed_at_each_step() -> None:
    seen = []
    for what in cuts(lambda: keep(plan_claim(NAMES[0]), persist=True), release):
        recover()
        assert there() == ([] if what else WHOLE), what
        seen.append(what)
    assert sum(is_write(what) for what in seen) == 1
    assert sum(what.startswith(("write", "link")) for what in seen) == 2


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
        made = made or is_write(what)


def test_power_cut_at_each_step_of_a_release() -> None:
    removed = False

    def prepare() -> None:
        if not there():
            keep(plan_claim(NAMES[0]), persist=True)

    for what in cuts(release, prepare):
        reboot()
        assert [outcome.error for outcome in claim_persistent()] in ([], [None])
        assert there() == ([] if removed else WHOLE), what
        removed = removed or what == f"{claim_file.FOLDER / NAMES[0]}.toml: remove"


def test_files_that_were_not_finished_go() -> None:
    for path in (boot_unit.file(), claim_file.FOLDER / "x.toml"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + durable.DRAFT).write_text("hal")
        (path.parent / "mine").write_text("somebody else's")
    recover()
    assert sorted(path.name for path in boot_unit.FOLDER.iterdir()) == ["mine"]
    assert sorted(path.name for path in claim_file.FOLDER.iterdir()) == ["mine"]


def test_claim_made_anew_where_one_died_at_its_first_step() -> None:
    assert cut_off(lambda: keep(plan_claim(NAMES[0]), persist=True), 1)
    with pytest.raises(ClaimRefusedError, match="a process that is gone; `pyiommufd recover` gives it back"):
        keep(plan_claim(NAMES[0]), persist=True)
    recover()
    keep(plan_claim(NAMES[0]), persist=True)
    recover()
    assert there() == WHOLE
    release()
    assert there() == []


@pytest.mark.parametrize("known", [True, False])
def test_claim_of_the_version_before_is_released(known: bool) -> None:
    keep(plan_claim(NAMES[0]), persist=True)
    (record,) = journal.records()
    version_1.rewrite(record, known=known)
    keep(plan_claim(NAMES[1]), persist=True)
    assert recover() == []
    assert list((journal.RUN / "kept").glob("*.json")) == []
    joined = journal.find(record.id)
    assert joined is not None
    assert (joined.state, joined.file, joined.unit) == (record.state, record.file, record.unit)
    assert [outcome.there for outcome in claim_persistent()] == [True, True]
    release([NAMES[0]])
    assert there() == ["record: kept", f"{NAMES[1]}.toml", *WHOLE[2:]]
    release()
    assert there() == []


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize(("stage", "owns_file"), [("making", True), ("making", False), ("releasing", True)])
def test_what_the_version_before_left_half_done_is_undone(stage: str, owns_file: bool, made: bool) -> None:
    """The file of a claim that could not be made at boot stays."""
    keep(plan_claim(NAMES[0]), persist=True)
    (record,) = journal.records()
    version_1.rewrite(record, stage, known=made, owns_file=owns_file)
    if not made:
        journal.remove(record)
    recover()
    assert there() == ([] if owns_file else WHOLE[1:])


def test_file_of_the_version_before_that_is_none_is_named(caplog: pytest.LogCaptureFixture) -> None:
    keep(plan_claim(NAMES[0]))
    (journal.RUN / "kept").mkdir(mode=0o700)
    (journal.RUN / "kept/x.json").write_text('{"id": 5}')
    release()
    assert "kept/x.json is no record of a kept claim" in caplog.text


def no_space(work: Callable[[], Any]) -> bool:
    """Whether some work failed for want of space on the disk."""
    try:
        work()
    except IOMMUFDError as error:
        return "No space left" in str(error)
    return False


def test_every_word_of_the_record_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """No room, at each write in turn: the claim is not made, or its release is told of or done, and nothing is lost."""
    commit = durable.commit

    def full_at(number: int) -> Callable[[str, Callable[[], None]], None]:
        count = itertools.count()

        def full(what: str, change: Callable[[], None]) -> None:
            if (what.startswith(("record", "write")) or what.endswith(": write")) and next(count) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            commit(what, change)

        return full

    for number in itertools.count():
        with monkeypatch.context() as context:
            context.setattr(durable, "commit", full_at(number))
            failed = no_space(lambda: keep(plan_claim(NAMES[0]), persist=True))
        if not failed:
            break
        recover()
        assert there() == [], number
    assert number >= 5
    for number in itertools.count():
        if not there():
            keep(plan_claim(NAMES[0]), persist=True)
        with monkeypatch.context() as context:
            context.setattr(durable, "commit", full_at(number))
            failed = no_space(release)
        # Once begun it goes on: what is on record is how everything was.
        assert there() == (WHOLE if failed else []), number
        if number > 5:
            break


def test_signal_at_each_step_of_a_claim() -> None:
    """Of its own it undoes what there is; after the last word on record the claim is whole."""
    for number in itertools.count():
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a command that was run in this process may have set it
            count, commit = itertools.count(), durable.commit

            def signalled(what: str, change: Callable[[], None]) -> None:
                commit(what, change)  # noqa: B023 - of this child
                if next(count) == number:  # noqa: B023 - of this child
                    os.kill(os.getpid(), signal.SIGTERM)

            durable.commit = signalled
            try:
                keep(plan_claim(NAMES[0]), persist=True)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.waitstatus_to_exitcode(status):
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
        left = there()
        assert left in ([], WHOLE)
        if left:
            release()
    assert number >= 6
    assert there() == WHOLE
    release()


def test_version_before_that_is_at_work_is_left_alone() -> None:
    """It has its own lock for as long as it makes or releases a kept claim."""
    keep(plan_claim(NAMES[0]), persist=True)
    (record,) = journal.records()
    version_1.rewrite(record, "making")
    with open(journal.RUN / "kept/lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert recover() == []
        assert there() == WHOLE
    recover()
    assert there() == []


def test_claim_that_is_released_before_its_turn_is_not_made_at_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The release had the lock while the boot looked at the devices."""
    keep(plan_claim(NAMES[0]), persist=True)
    reboot()

    def release_first(*arguments: Any, **options: Any) -> Claim:
        release()
        return carry_out(*arguments, **options)

    monkeypatch.setattr(at_boot, "carry_out", release_first)
    (outcome,) = claim_persistent()
    assert "toml is no persistent claim" in str(outcome.error)
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


def test_file_of_a_newer_version_is_left_alone() -> None:
    for name in NAMES:
        keep(plan_claim(name), persist=True)
    reboot()
    newer = claim_file.files()[0]
    newer.write_text(newer.read_text().replace("version = 1", "version = 2"))
    with pytest.raises(ClaimError, match="newer pyiommufd"):
        release()
    assert claim_file.files() == [newer]
    with pytest.raises(ClaimError, match="newer pyiommufd"):
        release([newer.stem])
    assert claim_file.files() == [newer]


def test_look_that_fails_in_a_release_leaves_the_rest_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel answers to a look is no reason to stop halfway."""
    keep(plan_claim(NAMES[0]), persist=True)
    check = transaction.Transaction._check_unused

    def fail(self: transaction.Transaction, step: Step, name: str = "") -> None:
        check(self, step, name)
        if not name and step.target.endswith(".toml"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as context:
        context.setattr(transaction.Transaction, "_check_unused", fail)
        with pytest.raises(CloseError, match=r"\.toml: remove: Input/output error"):
            release()
    assert there() != []
    recover()
    assert there() == []


def test_device_that_is_left_of_all_claims() -> None:
    for name in NAMES:
        keep(plan_claim(name))
    with pytest.raises(ClaimError, match=r"0000:00:02\.0 is not among what is to be released"):
        release(NAMES[1], leave=NAMES[0])
    assert len(journal.records()) == 2
    release(leave=NAMES[0])
    assert there() == []


@pytest.mark.parametrize("user", [0, "0", "root"])
def test_user_by_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: int | str) -> None:
    monkeypatch.setattr(transaction, "IOMMU_NODE", tmp_path / "iommu")
    with pytest.raises(ClaimError, match=r"no node .*/iommu that root could be given"):
        plan_claim(NAMES[0]).apply(keep=True, user=user)


def test_claims_are_roots_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(plan_claim(NAMES[0]))
    listdir = os.listdir

    def refuse(path: Path | str) -> list[str]:
        if Path(path) == journal.RUN:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(journal.NoAccessError, match="takes root"):
        list_claims()


def test_claim_of_a_dead_process_is_released_by_name(machine: FakeSysfs) -> None:
    """`recover` is one way; where it leaves the device, `release --leave` is the other."""
    plan_claim(NAMES[0]).apply()
    (record,) = journal.records()
    with pytest.raises(ClaimError, match="it is claimed by this process"):
        release(NAMES[0])
    record.start_time -= 1
    journal.write(record)
    assert release(NAMES[0], leave=NAMES[0]) == []
    assert there() == []
