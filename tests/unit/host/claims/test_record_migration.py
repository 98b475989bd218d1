"""Records in the format of version 1, which kept a claim in two files."""

from __future__ import annotations

import fcntl

import pytest

from pyiommufd import plan_claim, recover, release
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.at_boot import claim_persistent
from tests import version_1
from tests.unit.host.claims.kept import NAMES, WHOLE, keep, there

pytestmark = pytest.mark.usefixtures("vfio_machine")


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
    assert [outcome.already_claimed for outcome in claim_persistent()] == [True, True]
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
    assert "kept/x.json is not a record of a kept claim" in caplog.text


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
