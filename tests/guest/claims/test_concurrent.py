"""Many claims at the same time."""

from __future__ import annotations

import os
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from pyiommufd import ClaimError, ClaimPlan, ClaimRefusedError, HostDevice, list_devices, plan_claim
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import DeviceState
from pyiommufd.testing.drivers import edu
from tests.patience import until
from tests.sweeps import amount, seed

State = dict[str, DeviceState]
SECONDS = 1200
"""Seconds; a process that waits longer than this is taken to be deadlocked."""


def is_taken(devices: list[HostDevice]) -> bool:
    """Whether a claim has one of the groups, by the record."""
    groups = {device.group_id for device in devices}
    return any(groups & set(entry.groups) for entry in journal.records())


def hold(plan: ClaimPlan, markers: Path, met: Path) -> bool:
    """Apply a plan unless another process is faster; mark the claimed devices until another process wants one."""
    try:
        claim = plan.apply()
    except ClaimRefusedError as error:
        if {refusal.kind for refusal in error.refusals} != {"claimed"}:
            raise
        return False
    except ClaimError as error:
        # Another process was changing the devices when it was planned.
        if "plan again" not in str(error):
            raise
        return False
    with claim:
        # Nobody else has any of them, or the file would be there.
        marks = [markers / device.name for group in claim.plan.groups for device in group.devices]
        for mark in marks:
            mark.touch(exist_ok=False)
        assert {device.driver for device in claim.devices} == {"vfio-pci"}
        until(met.exists, "somebody else wants one of the devices")
        for mark in marks:
            mark.unlink()
    return True


def claim_some(number: int, devices: list[HostDevice], markers: Path) -> int:
    """Claim two devices that others want as well, mark all that come with them, give them back.

    Returns:
        How often somebody else had one of them.
    """
    chosen = random.Random(number).sample(devices, 2)  # noqa: S311
    end = time.monotonic() + SECONDS
    refused, met = 0, markers.with_name("met")
    while time.monotonic() < end:
        # Check the record first, which is cheap: twenty processes that keep planning would starve the one that claims.
        if not is_taken(chosen) and hold(plan_claim(chosen), markers, met):
            return refused
        refused += 1
        met.touch()
        time.sleep(random.uniform(0.3, 1.0))  # noqa: S311
    raise AssertionError(f"refused for {SECONDS} s")


@pytest.mark.long
def test_twenty_claims_of_overlapping_groups(
    neighbour: HostDevice,
    state: Callable[[], State],
    as_before: State,
    markers: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All others may be before the last one, and each of them takes seconds on a busy machine.
    monkeypatch.setattr(journal, "LOCK_SECONDS", SECONDS)
    devices = [device for device in list_devices("pci") if device.device_id == edu.DEVICE_ID]
    groups = {device.group_id for device in devices}
    assert len(groups) >= 2
    children = {}
    start, processes = seed("claims.concurrent"), amount("claims.concurrent", 20, 8)
    for number in range(start, start + processes):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(writer, f"{claim_some(number, devices, markers)}".encode())
                os._exit(0)
            except BaseException:
                os.write(writer, traceback.format_exc().encode())
            os._exit(1)
        os.close(writer)
        children[child] = reader
    refused, failed = 0, []
    for child, reader in children.items():
        with open(reader, "rb") as pipe:
            text = pipe.read().decode()
        _, status = os.waitpid(child, 0)
        if status:
            failed.append(text)
        else:
            refused += int(text)
    assert not failed, "\n".join(failed)
    assert refused, "they have not been in each other's way"
    assert list(markers.iterdir()) == []
    assert neighbour.refreshed().driver == "virtio-pci"
    assert state() == as_before
