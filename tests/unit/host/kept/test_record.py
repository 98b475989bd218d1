"""The record of kept claims in a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyiommufd import ClaimError
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.journal import Entry, State
from pyiommufd.host.kept import record as kept_record
from pyiommufd.host.kept.record import Node, Stage, locked, new_record, records


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(journal, "RUN", tmp_path / "run")
    return tmp_path / "run"


def entry(state: State = State.KEPT, name: str = "a") -> Entry:
    one = Entry.begin([5], [name])
    one.state = state
    journal.write(journal.RUN, one)
    return one


def test_what_is_written_is_read(run: Path) -> None:
    with locked():
        record = new_record(["a", "b"])
        record.nodes.append(Node("/dev/iommu", None, None))
        record.file, record.owns_file, record.user, record.uid = "/etc/x", True, "somebody", 7
        record.write()
        assert records() == [record]
        record.stage = Stage.KEPT
        record.write()
        assert records() == [record]
        record.remove()
        record.remove()
        assert records() == []
    assert run.stat().st_mode & 0o777 == (run / "kept").stat().st_mode & 0o777 == 0o700


def test_record_is_its_owners_only(run: Path) -> None:
    with locked():
        new_record([]).write()
        (path,) = (run / "kept").glob("*.json")
        assert path.stat().st_mode & 0o777 == 0o600


def test_records_of_an_earlier_boot_have_ended_with_it() -> None:
    with locked():
        record = new_record(["a"])
        record.boot = "before"
        record.write()
        assert records() == []


def test_claim_that_belongs_to_it(run: Path) -> None:
    """Not one that was there before, of other devices, or of another process; nor one that is not kept."""
    run.mkdir()
    entry()
    with locked():
        record = new_record(["a"])
        assert record.find_entry() is None
        entry(name="b")
        entry(State.SESSION)
        other = entry()
        other.pid += 1
        journal.write(run, other)
        assert record.find_entry() is None
        mine = entry()
        assert record.find_entry() == mine
        # Known by its id from then on, whoever is at it.
        record.entry = mine.id
        mine.state, mine.pid = State.IN_PROGRESS, 1
        journal.write(run, mine)
        assert record.find_entry() == mine
        journal.remove(run, mine)
        assert record.find_entry() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stage": "lost"}', '{"stage": "kept", "nodes": [1]}'])
def test_file_that_is_no_record_is_named(run: Path, text: str) -> None:
    with locked():
        (run / "kept/x.json").write_text(text)
        with pytest.raises(ClaimError, match=r"x\.json is no record"):
            records()


def test_lock_is_no_hindrance_to_the_journals_own(run: Path) -> None:
    with locked(), journal.locked(run):
        new_record([]).write()
        assert len(json.loads(next((run / "kept").glob("*.json")).read_text())) == len(kept_record.KeptRecord.__slots__)


def test_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(journal, "RUN", tmp_path / "file/run")
    with pytest.raises(ClaimError, match="takes root"), locked():
        pass
