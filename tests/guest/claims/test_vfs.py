"""Virtual functions: made, taken away, and what a claim of their device does with them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from pyiommufd import (
    ClaimError,
    ClaimRefusedError,
    CloseError,
    DeviceFile,
    HostDevice,
    find_device,
    plan_claim,
    recover,
)
from pyiommufd.host import drivers, sysfs, worker
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.rebind import plan_rebind
from pyiommufd.host.claims.record import ClaimRecord, DeviceState
from pyiommufd.host.claims.steps import Action, Step
from pyiommufd.host.claims.vfs import set_vfs, vfs_steps
from pyiommufd.host.discovery.vfs import vfs_of
from tests.guest.forked import run_cli
from tests.patience import patience

State = dict[str, DeviceState]


@pytest.fixture
def unprobed(pf: HostDevice) -> None:
    """New functions stay without a driver, which takes its time to find that QEMU's are switched off."""
    sysfs.write(pf.sys_path / "sriov_drivers_autoprobe", "0")


@pytest.fixture(autouse=True)
def autoprobe(pf: HostDevice, as_before: State) -> Iterator[None]:
    yield
    sysfs.write(pf.sys_path / "sriov_drivers_autoprobe", "1")


@pytest.mark.long
def test_count_is_set_by_the_steps_that_were_planned(pf: HostDevice, unprobed: None) -> None:
    for count, values in ((2, ["2"]), (1, ["0", "1"]), (1, []), (0, ["0"])):
        steps: list[Step] = []
        planned = vfs_steps(pf, count)
        found = set_vfs(pf, count, report=steps.append)
        assert tuple(steps) == planned
        assert [step.value for step in steps] == values
        assert found.count == len(found.devices) == count
        assert sysfs.read(pf.sys_path / "sriov_numvfs") == str(count)


def test_setting_that_fails_leaves_the_functions_of_before(
    pf: HostDevice, functions: tuple[HostDevice, ...], state: Callable[[], State]
) -> None:
    before = state()

    def gets_in_the_way(step: Step) -> None:
        if step.value == "1":
            raise RuntimeError("reported to nobody")

    # Once for the step that makes one function, once on the way back, which goes on all the same.
    with pytest.raises(RuntimeError):
        set_vfs(pf, 1, force=["vfs"], report=gets_in_the_way)
    assert state() == before


def test_driver_that_makes_none_is_named(alone: HostDevice, pf: HostDevice) -> None:
    with plan_claim(pf).apply(), pytest.raises(ClaimError, match=r"vfio-pci makes no virtual functions.*enable_sriov"):
        set_vfs(pf, 1)
    with pytest.raises(ClaimError, match="no SR-IOV"):
        set_vfs(alone, 1)


def test_functions_that_are_claimed_are_not_taken_away(
    pf: HostDevice, functions: tuple[HostDevice, ...], state: Callable[[], State]
) -> None:
    with plan_claim(functions[1]).apply():
        taken = state()
        for force in (["vfs"], ["vfs", "held"]):
            with pytest.raises(ClaimRefusedError) as caught:
                set_vfs(pf, 0, force=force)
            assert {refusal.kind for refusal in caught.value.refusals} == {"claimed"}
            with pytest.raises(ClaimRefusedError, match="claimed already"):
                plan_claim(pf, force=force).apply()
        assert state() == taken


@pytest.mark.parametrize("keep", [False, True])
def test_functions_of_a_claimed_device_are_its_holders_to_change(
    pf: HostDevice, sriov_by_vfio: None, state: Callable[[], State], keep: bool
) -> None:
    """And anybody's, of a kept claim. It goes back as it was; what is in use stays."""
    before = state()
    claim = plan_claim(pf).apply(keep=keep)
    assert set_vfs(pf, 2).count == 2
    made = state()
    done = run_cli("vfs", pf.name, "1")
    if keep:
        assert done.returncode == 0, done.stderr
        assert vfs_of(pf).count == 1
    else:
        assert done.returncode == 1
        assert f"{pf.name}: it is claimed already, by process {os.getpid()} [claimed]" in done.stderr
        assert state() == made
    refusals = [str(refusal) for refusal in plan_rebind(pf).refusals]
    assert len([text for text in refusals if text.startswith(f"{pf.name}: it is claimed already")]) == 1
    assert set_vfs(pf, 1).count == 1
    (function,) = vfs_of(pf).devices
    with DeviceFile(function), pytest.raises(ClaimRefusedError, match=f"{function}: this process .* holds"):
        set_vfs(pf, 0)
    with plan_claim(function).apply():
        for force in ([], ["vfs", "held"]):
            with pytest.raises(ClaimRefusedError, match=f"{function}: it is claimed already"):
                set_vfs(pf, 0, force=force)
    assert set_vfs(pf, 0).count == 0
    assert set_vfs(pf, 2).count == 2
    claim.release()
    assert state() == before
    assert vfs_of(pf).count == 0


def test_plan_shows_what_goes_away(pf: HostDevice, functions: tuple[HostDevice, ...]) -> None:
    plan = plan_claim(pf)
    assert plan.moves[0].vfs == functions
    assert set(functions) <= set(plan.companions)
    assert f"{functions[0].name}: pci-stub -> gone, with its physical function" in str(plan)
    with pytest.raises(ClaimError, match="virtual function of"):
        plan_claim([pf, functions[0]])


@pytest.mark.long
def test_commands_undo_it_by_hand(
    pf: HostDevice, functions: tuple[HostDevice, ...], state: Callable[[], State]
) -> None:
    before = state()
    plan = plan_claim(pf, force=["vfs"])
    claim = plan.apply()
    assert vfs_of(pf).count == 0
    for command in plan.undo_commands:
        assert os.system(command) == 0, command  # noqa: S605
    assert state() == before
    steps: list[Step] = []
    claim.release(report=steps.append)
    assert steps == []


@pytest.mark.long
def test_setting_that_died_is_undone_after_its_claim(
    pf: HostDevice, functions: tuple[HostDevice, ...], state: Callable[[], State]
) -> None:
    """Two records of one device: the first has the last word."""
    before = state()
    claim = plan_claim(pf, force=["vfs"]).apply()
    entry = journal.find(claim._id)
    assert entry is not None
    later = ClaimRecord.begin()
    later.devices = [replace(before[pf.name], driver="vfio-pci", driver_override="vfio-pci", numvfs=0, vfs=[])]
    for one in (entry, later):
        one.start_time -= 1
        journal.write(one)
    assert recover() == [pf.name]
    assert state() == before


@pytest.mark.long
def test_step_that_hangs_is_told_of_in_time_and_the_rest_is_rolled_back(
    pf: HostDevice,
    alone: HostDevice,
    functions: tuple[HostDevice, ...],
    state: Callable[[], State],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody holds a function, and does not let go when the kernel asks: the count is not set before that."""
    function = functions[1]
    drivers.set_driver_override(function, "vfio-pci")
    drivers.bind(function, "vfio-pci")
    before = state()
    with DeviceFile(function):
        with pytest.raises(ClaimRefusedError) as refused:
            plan_claim([alone, pf]).apply()
        assert "held" in {refusal.kind for refusal in refused.value.refusals}
        plan = plan_claim([alone, pf], force=["held", "vfs"])

        limit = patience(1)

        def hurry(step: Step) -> None:
            monkeypatch.setattr(worker, "SECONDS", limit if step.action is Action.SET_VFS else patience())

        start = time.monotonic()
        with pytest.raises(ClaimError, match=f"not all of it could be rolled back.*did not return within {limit:g} s"):
            plan.apply(report=hurry)
        print(f"told of after {time.monotonic() - start:.1f} s")
        # What could be given back has been; nobody touches the other as long as the kernel is at it.
        assert alone.refreshed().driver is None
        assert len(journal.records()) == 1
        with pytest.raises(CloseError, match=rf"{pf.name}: an earlier write .* still blocks .* \(process"):
            recover()
    for process in worker._abandoned:
        process.wait(patience())
    monkeypatch.undo()
    assert recover() == [pf.name]
    assert find_device(function.name).driver == "vfio-pci"
    assert state() == before


def test_functions_that_somebody_has_keep_their_device_where_it_is(pf: HostDevice, sriov_by_vfio: None) -> None:
    claim = plan_claim(pf).apply()
    (function,) = set_vfs(pf, 1).devices
    kept = plan_claim(function).apply(keep=True)
    with pytest.raises(CloseError) as caught:
        claim.release()
    assert f"claimed by a kept claim; release(['{function.name}']), and try again, or leave it" in str(caught.value)
    assert f"; pyiommufd release {function.name}, and try again" in caught.value.for_command()
    kept.release()
    with plan_claim(function).apply():
        with pytest.raises(CloseError, match="nothing was changed") as caught:
            claim.release()
        assert f"{function.name}: it is claimed by this process" in str(caught.value)
        assert f"leave=['{pf.name}']" in str(caught.value)
    with DeviceFile(function), pytest.raises(CloseError, match=rf"{pf.name} stays as it is: this process \(pid "):
        claim.release()
    assert vfs_of(pf).count == 1
    claim.release()
    assert vfs_of(pf).count == 0
