"""Claims that are made again at boot, or cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from pyiommufd import Claim, ClaimError, plan_claim, recover, release
from pyiommufd.host.claims import at_boot, journal
from pyiommufd.host.claims.at_boot import claim_persistent
from pyiommufd.host.claims.claim import carry_out
from pyiommufd.host.persistent import boot_unit, claim_file
from tests.fake_sysfs import FakeSysfs
from tests.unit.host.claims.kept import BOARD, NAMES, keep, no_room, reboot, there

pytestmark = pytest.mark.usefixtures("vfio_machine")


def test_claims_are_made_again_at_boot() -> None:
    for name in NAMES:
        keep(plan_claim(name), persist=True)
    reboot()
    assert [outcome.devices for outcome in claim_persistent(dry_run=True)] == [(name,) for name in NAMES]
    assert [outcome.error for outcome in claim_persistent()] == [None, None]
    assert [entry.wanted for entry in journal.records()] == [[name] for name in NAMES]
    # Once more changes nothing.
    assert [outcome.already_claimed for outcome in claim_persistent()] == [True, True]
    assert len(journal.records()) == 2
    release([NAMES[0]])
    reboot()
    assert [outcome.devices for outcome in claim_persistent()] == [(NAMES[1],)]
    release()
    assert there() == []


def test_boot_that_does_not_find_a_device(vfio_machine: FakeSysfs) -> None:
    for name in NAMES:
        keep(plan_claim(name), persist=True)
    reboot()
    (vfio_machine.root / "bus/pci/devices" / NAMES[0]).unlink()
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


def test_claim_of_a_device_that_cannot_be_told_is_released_by_its_name(vfio_machine: FakeSysfs) -> None:
    """Another card of its kind has come, in whichever slot."""
    keep(plan_claim(NAMES[0]), persist=True)
    reboot()
    vfio_machine.pci("0000:00:05.0", group=5, **BOARD)
    (outcome,) = claim_persistent()
    assert "cannot be told for certain" in str(outcome.error)
    with pytest.raises(ClaimError, match="is claimed at boot already"):
        keep(plan_claim(NAMES[0]), persist=True)
    release([NAMES[0]])
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
    assert "toml is not a persistent claim" in str(outcome.error)
    assert there() == []
