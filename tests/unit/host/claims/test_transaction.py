"""Claims and releases that end at any of their steps: by a signal, with the power cut, or with no room on the disk."""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyiommufd import ClaimRefusedError, IOMMUFDError, plan_claim, recover, release
from pyiommufd.host import durable
from pyiommufd.host.claims.at_boot import claim_persistent
from pyiommufd.host.persistent import claim_file
from tests.unit.host.claims.kept import NAMES, WHOLE, keep, reboot, there

pytestmark = pytest.mark.usefixtures("vfio_machine")


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


def test_claim_made_anew_where_one_died_at_its_first_step() -> None:
    assert cut_off(lambda: keep(plan_claim(NAMES[0]), persist=True), 1)
    with pytest.raises(ClaimRefusedError, match=r"a process that has ended; recover\(\) gives it back"):
        keep(plan_claim(NAMES[0]), persist=True)
    recover()
    keep(plan_claim(NAMES[0]), persist=True)
    recover()
    assert there() == WHOLE
    release()
    assert there() == []


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
