"""Release and recovery of kept claims: how much of them goes, and what a failure leaves."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from pyiommufd import ClaimError, CloseError, DeviceNotFoundError, plan_claim, recover, release
from pyiommufd.host import durable
from pyiommufd.host.claims import journal, transaction
from pyiommufd.host.claims.steps import Step
from pyiommufd.host.persistent import boot_unit, claim_file
from tests.dry_run import dry_run
from tests.fake_sysfs import FakeSysfs
from tests.unit.host.claims.kept import NAMES, keep, no_room, reboot, there

pytestmark = pytest.mark.usefixtures("vfio_machine")


def test_unit_stays_as_long_as_there_is_a_claim_for_it() -> None:
    for name in NAMES:
        keep(plan_claim(name), persist=True)
    assert [str(step) for step in dry_run(release, [NAMES[1]])] == [f"{claim_file.FOLDER}/{NAMES[1]}.toml: remove"]
    release([NAMES[1]])
    assert boot_unit.is_installed()
    release([NAMES[0]])
    assert there() == []


def test_release_of_what_nobody_has_claimed() -> None:
    keep(plan_claim(NAMES[0]))
    for name in (NAMES[1], "0000:00:09.0"):
        with pytest.raises(Exception, match=name.replace(".", r"\.")):
            release([NAMES[0], name])
    with pytest.raises(DeviceNotFoundError, match="did you mean 0000:00:02"):
        release("0000:00:02.1")
    assert there() == ["record: kept"]
    release()


def test_name_of_several_devices_is_that_of_the_one_that_is_claimed(vfio_machine: FakeSysfs) -> None:
    keep(plan_claim(NAMES[0]))
    twin = f"0001{NAMES[0][4:]}"
    vfio_machine.pci(twin, root_bus="pci0001:00", group=4, driver="vfio-pci", cdev=2)
    short = NAMES[0].partition(":")[2]
    keep(plan_claim(twin))
    with pytest.raises(DeviceNotFoundError, match="is ambiguous: it names") as caught:
        release(short)
    assert caught.value.names == (NAMES[0], twin)
    assert not caught.value.is_unknown
    release(twin)
    release(short, leave=short)
    assert there() == []


def test_device_that_is_left_of_all_claims() -> None:
    for name in NAMES:
        keep(plan_claim(name))
    with pytest.raises(ClaimError, match=r"0000:00:02\.0 is not among what is to be released"):
        release(NAMES[1], leave=NAMES[0])
    assert len(journal.records()) == 2
    release(leave=NAMES[0])
    assert there() == []


def test_claim_of_a_dead_process_is_released_by_name(vfio_machine: FakeSysfs) -> None:
    """`recover` is one way; where it leaves the device, `release --leave` is the other."""
    plan_claim(NAMES[0]).apply()
    (record,) = journal.records()
    with pytest.raises(ClaimError, match="it is claimed by this process"):
        release(NAMES[0])
    record.start_time -= 1
    journal.write(record)
    assert release(NAMES[0], leave=NAMES[0]) == []
    assert there() == []


@pytest.mark.parametrize("name", [NAMES[0], f"pci_{NAMES[0].translate(str.maketrans(':.', '__'))}", f"00{NAMES[0]}"])
def test_device_that_is_gone_is_released_by_any_form_of_its_address(vfio_machine: FakeSysfs, name: str) -> None:
    keep(plan_claim(NAMES[0]))
    (vfio_machine.root / "bus/pci/devices" / NAMES[0]).unlink()
    shutil.rmtree(vfio_machine.root / "devices/pci0000:00" / NAMES[0])
    release(name)
    assert there() == []


def test_report_that_fails_does_not_end_a_release() -> None:
    """The connection has broken, say: the files go all the same."""
    for name in NAMES:
        keep(plan_claim(name), persist=True)

    def report(step: object) -> None:
        raise BrokenPipeError(step)

    release(report=report)
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


def test_files_that_were_not_finished_go() -> None:
    for path in (boot_unit.file(), claim_file.FOLDER / "x.toml"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + durable.DRAFT).write_text("hal")
        (path.parent / "mine").write_text("somebody else's")
    recover()
    assert sorted(path.name for path in boot_unit.FOLDER.iterdir()) == ["mine"]
    assert sorted(path.name for path in claim_file.FOLDER.iterdir()) == ["mine"]
