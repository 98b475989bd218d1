"""Claims: taken as planned, or not at all, and given back exactly."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import (
    Claim,
    ClaimError,
    ClaimRefusedError,
    CloseError,
    DeviceFile,
    ForkedError,
    HostDevice,
    plan_claim,
)
from pyiommufd.host import drivers
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimState
from tests.guest.types import DriverState, ReadDriverState


@pytest.fixture(autouse=True)
def as_before(driver_state: ReadDriverState) -> Iterator[DriverState]:
    """Every test gives back what it has taken, and leaves no record."""
    before = driver_state()
    yield before
    assert driver_state() == before
    assert journal.records() == []


def test_claim_takes_the_group_and_release_gives_it_back(
    first: HostDevice, peer: HostDevice, neighbour: HostDevice, as_before: DriverState, driver_state: ReadDriverState
) -> None:
    assert as_before[neighbour.name] == ("virtio-pci", None)
    assert as_before[first.name] == (None, None)
    with plan_claim(first).apply() as claim:
        for device in (first, peer, neighbour):
            assert driver_state()[device.name] == ("vfio-pci", "vfio-pci")
            assert device.refreshed().vfio_cdev
        (entry,) = journal.records()
        assert entry.state is ClaimState.SESSION
        assert journal.is_alive(entry)
        assert [before.name for before in entry.devices] == [move.device.name for move in claim.plan.moves]
        assert first.name in repr(claim)
    assert claim.released
    assert driver_state() == as_before
    claim.release()


def test_release_after_an_error_in_the_block(alone: HostDevice) -> None:
    with pytest.raises(ZeroDivisionError), plan_claim(alone).apply():
        raise ZeroDivisionError


def test_host_driver_works_again_after_release(neighbour: HostDevice) -> None:
    assert Path("/sys/class/misc/hw_random/rng_current").read_text().startswith("virtio_rng")
    with plan_claim(neighbour).apply():
        assert not Path("/sys/class/misc/hw_random/rng_current").read_text().startswith("virtio_rng")
    with open("/dev/hwrng", "rb") as generator:
        assert len(generator.read(16)) == 16


@pytest.mark.long
@pytest.mark.parametrize("override", ["pci-stub", "virtio-pci"])
def test_override_of_before_stays(
    first: HostDevice, neighbour: HostDevice, override: str, driver_state: ReadDriverState
) -> None:
    """On a driver as well as without one; also where it would not let the device on the driver that it is on."""
    try:
        for device in (first, neighbour):
            drivers.set_driver_override(device, override)
        before = driver_state()
        assert before[neighbour.name] == ("virtio-pci", override)
        with plan_claim(first).apply():
            assert driver_state()[neighbour.name] == ("vfio-pci", "vfio-pci")
        assert driver_state() == before
    finally:
        for device in (first, neighbour):
            drivers.set_driver_override(device, None)


def test_step_that_fails_rolls_back_those_before_it(
    first: HostDevice, neighbour: HostDevice, tmp_path: Path, as_before: DriverState, driver_state: ReadDriverState
) -> None:
    """The third device's override cannot be written: the first two have been moved by then."""
    plan = plan_claim(first)
    assert plan.moves[-1].device == neighbour
    attribute = neighbour.sys_path / "driver_override"
    decoy = tmp_path / "read-only"
    decoy.write_text("(null)\n")
    subprocess.run(["mount", "--bind", decoy, attribute], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", attribute], check=True)
    try:
        with pytest.raises(ClaimError, match="rolled back") as caught:
            plan.apply()
    finally:
        subprocess.run(["umount", attribute], check=True)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EROFS
    assert f"{neighbour.name}: set driver_override to vfio-pci: Read-only" in str(caught.value)
    assert driver_state() == as_before


def test_claim_of_what_is_claimed_is_refused(first: HostDevice, peer: HostDevice) -> None:
    with plan_claim(first).apply():
        for again in (first, peer):
            with pytest.raises(ClaimRefusedError, match="claimed already") as caught:
                plan_claim(again).apply()
            assert {refusal.kind for refusal in caught.value.refusals} == {"claimed"}
            assert first.name in {refusal.device for refusal in caught.value.refusals}


def test_group_whose_node_somebody_holds_is_refused(first: HostDevice, peer: HostDevice) -> None:
    drivers.set_driver_override(peer, "vfio-pci")
    try:
        drivers.bind(peer, "vfio-pci")
        with open(f"/dev/vfio/{first.group_id}", "r+b", buffering=0), pytest.raises(ClaimRefusedError) as caught:
            plan_claim(first).apply()
        assert {refusal.kind for refusal in caught.value.refusals} == {"held"}
        assert f"/dev/vfio/{first.group_id}" in str(caught.value)
    finally:
        drivers.unbind(peer)
        drivers.set_driver_override(peer, None)


def test_plan_that_the_machine_has_left_behind_is_refused(first: HostDevice, neighbour: HostDevice) -> None:
    plan = plan_claim(first)
    drivers.unbind(neighbour)
    try:
        with pytest.raises(ClaimError, match="plan again") as caught:
            plan.apply()
        assert f"{neighbour.name}: no driver -> vfio-pci" in str(caught.value)
        assert first.refreshed().driver is None
    finally:
        drivers.bind(neighbour, "virtio-pci")


def test_release_of_a_held_device_says_who_and_can_be_repeated(
    first: HostDevice, neighbour: HostDevice, driver_state: ReadDriverState
) -> None:
    claim = plan_claim(first).apply()
    file = DeviceFile(first)
    held = driver_state()
    with pytest.raises(CloseError, match="nothing was changed") as caught:
        claim.release()
    # Without each other's drivers the members of a group would be of no use, were the device bound.
    said, *others = map(str, caught.value.errors)
    assert len(others) == len(claim.plan.moves) - 1
    assert re.search(rf"this process \(pid {os.getpid()}\) .* by fd {file.fileno()}", said)
    named = said.partition(" stays")[0]
    assert all(f" stays as it is, as {named} does" in other for other in others)
    assert "Error" not in str(caught.value)
    assert not claim.released
    assert driver_state() == held
    (record,) = journal.records()
    assert record.state is ClaimState.SESSION
    file.close()
    claim.release()
    assert claim.released


def test_claims_at_the_same_time(first: HostDevice, alone: HostDevice) -> None:
    """Of different groups both succeed; of one group one does."""
    outcome: list[Claim | BaseException] = []

    def take(device: HostDevice) -> None:
        try:
            outcome.append(plan_claim(device).apply())
        except BaseException as error:
            outcome.append(error)

    threads = [threading.Thread(target=take, args=(device,)) for device in (first, alone, alone)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    claims = [one for one in outcome if isinstance(one, Claim)]
    errors = [one for one in outcome if not isinstance(one, Claim)]
    try:
        assert {claim.plan.devices for claim in claims} == {(first,), (alone,)}
        # Planned before or after the other had taken it: both ways it is told.
        assert len(errors) == 1
        assert isinstance(errors[0], ClaimError)
    finally:
        for claim in claims:
            claim.release()


def test_claim_in_a_forked_child(
    alone: HostDevice, driver_state: ReadDriverState, in_child: Callable[[Callable[[], Any]], Any]
) -> None:
    with plan_claim(alone).apply() as claim:
        taken = driver_state()

        def child() -> str:
            claim.release()
            try:
                claim.devices  # noqa: B018
            except ForkedError as error:
                return str(error)
            return "allowed"

        assert "process that made it" in in_child(child)
        assert driver_state() == taken
        assert not claim.released


def test_device_that_goes_while_it_is_claimed(alone: HostDevice, caplog: pytest.LogCaptureFixture) -> None:
    claim = plan_claim(alone).apply()
    (alone.sys_path / "remove").write_text("1")
    try:
        claim.release()
        assert claim.released
        assert f"{alone.name} is gone" in caplog.text
    finally:
        Path("/sys/bus/pci/rescan").write_text("1")
    assert alone.refreshed().driver is None


def test_device_that_was_on_vfio_before_stays_there(alone: HostDevice) -> None:
    drivers.set_driver_override(alone, "vfio-pci")
    try:
        drivers.bind(alone, "vfio-pci")
        with plan_claim(alone).apply() as claim:
            assert claim.plan.moves == ()
        assert alone.refreshed().driver == "vfio-pci"
    finally:
        drivers.unbind(alone)
        drivers.set_driver_override(alone, None)


def test_every_write_is_logged(alone: HostDevice, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="pyiommufd"), plan_claim(alone).apply():
        pass
    written = "\n".join(caplog.messages)
    assert f"{alone.sys_path}/driver_override" in written
    assert "drivers/vfio-pci/bind" in written
    assert "driver/unbind" in written
