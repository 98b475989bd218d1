"""A claimed disk that the host uses again: release and recovery look before they take it away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd import CloseError, HostDevice, plan_claim, recover, release
from pyiommufd.host import drivers
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimState
from tests.dry_run import dry_run
from tests.guest.uses.disks import node_of
from tests.guest.uses.types import Runner
from tests.patience import until


@pytest.fixture
def mounted(disk: HostDevice, node: Path, run: Runner, tmp_path: Path) -> Iterator[Path]:
    """The disk was on no driver when it was claimed, and has gone back by hand; a filesystem of it is mounted."""
    drivers.unbind(disk)
    plan_claim(disk).apply(keep=True)
    drivers.unbind(disk)
    drivers.set_driver_override(disk, None)
    drivers.bind(disk, "nvme")
    block = until(lambda: node_of(disk))
    assert block is not None
    run("mkfs.ext4", "-q", "-F", block)
    run("mount", block, tmp_path)
    (tmp_path / "file").write_text("hello")
    yield tmp_path
    run("umount", tmp_path)
    release(leave=disk) if journal.records() else None
    if disk.refreshed().driver is None:
        drivers.bind(disk, "nvme")
    until(lambda: node_of(disk))


def test_disk_that_is_mounted_is_left_and_stays_on_record(disk: HostDevice, mounted: Path, run: Runner) -> None:
    reason = rf"nothing was changed:\n  {disk.name} stays as it is, being in use by now: .* mounted .*\[mounted\]"
    for work in (lambda: dry_run(release), release, lambda: release(disk)):
        with pytest.raises(CloseError, match=reason):
            work()
        run("sync")
        assert (mounted / "file").read_text() == "hello"
        assert disk.refreshed().driver == "nvme"
        (record,) = journal.records()
        assert record.state is ClaimState.KEPT
    # A release that died halfway is no reason either.
    record.state = ClaimState.IN_PROGRESS
    journal.write(record)
    with pytest.raises(CloseError, match=rf"{disk.name} stays as it is"):
        recover()
    assert (mounted / "file").read_text() == "hello"
    assert len(journal.records()) == 1
    # The way out that the message names.
    assert release(leave=[disk.name]) == []
    assert journal.records() == []
    assert disk.refreshed().driver == "nvme"


def test_disk_that_is_no_longer_in_use_is_given_back(disk: HostDevice, mounted: Path, run: Runner) -> None:
    with pytest.raises(CloseError, match="nothing was changed"):
        release(disk)
    run("umount", mounted)
    assert release(disk) == [disk.name]
    assert disk.refreshed().driver is None
    run("mount", "-t", "tmpfs", "none", mounted)
