"""From how a device is to how it was: whatever of a claim or a release has been done, the steps lead back."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiommufd.host.claims.record import DeviceState
from pyiommufd.host.claims.restore import restore_steps
from pyiommufd.host.claims.steps import Action, Step

HOME = "virtio-pci"
VFIO = "vfio-pci"


def device(
    driver: str | None = None, override: str | None = None, name: str = "pf", count: int | None = None
) -> DeviceState:
    autoprobe = None if count is None else True
    functions = [device(None, None, f"vf{number}") for number in range(count or 0)]
    return DeviceState(name, "pci", f"/sys/devices/{name}", driver, override, "1:2", count, autoprobe, functions)


def words(before: DeviceState, now: DeviceState) -> list[str]:
    return [str(step).replace("pf: ", "") for step in restore_steps(before, now)]


class Machine:
    """What the kernel does by a step, as far as it matters here; it takes no step that it would refuse."""

    def __init__(self, now: DeviceState) -> None:
        self.devices = {now.name: now, **{function.name: function for function in now.vfs}}
        self.pf = now

    def take(self, step: Step) -> None:
        device = self.devices[step.target]
        match step.action:
            case Action.UNBIND:
                assert device.driver == step.value
                assert not device.vfs, "the driver would leave them behind, or refuse"
                device.driver, device.power = None, "on"
            case Action.BIND:
                assert device.driver is None
                assert device.driver_override in (None, step.value), "the kernel answers ENODEV"
                device.driver, device.power = step.value, "auto"
            case Action.SET_OVERRIDE | Action.CLEAR_OVERRIDE:
                device.driver_override = step.value
            case Action.SET_POWER:
                device.power = step.value
            case Action.SET_AUTOPROBE:
                device.autoprobe = step.value == "1"
            case Action.SET_VFS:
                count = int(step.value or "")
                assert device.driver is not None, "the kernel answers ENOENT"
                assert not (count and device.numvfs), "the kernel answers EBUSY"
                device.numvfs = count
                driver = "default" if device.autoprobe else None
                device.vfs = [
                    DeviceState(f"vf{i}", "pci", f"/sys/devices/vf{i}", driver, None, "1:2", power="on")
                    for i in range(count)
                ]
                self.devices |= {function.name: function for function in device.vfs}
            case _:
                pytest.fail(f"no step of a release: {step}")


def test_claimed_device_goes_back_to_its_driver() -> None:
    assert words(device(HOME), device(VFIO, VFIO)) == [
        "unbind from vfio-pci",
        "clear driver_override",
        "bind to virtio-pci",
    ]
    assert words(device(), device(VFIO, VFIO)) == ["unbind from vfio-pci", "clear driver_override"]


def test_override_that_keeps_the_device_from_its_driver_comes_back_last() -> None:
    assert words(device(HOME, "pci-stub"), device(VFIO, VFIO)) == [
        "unbind from vfio-pci",
        "set driver_override to virtio-pci",
        "bind to virtio-pci",
        "set driver_override to pci-stub",
    ]


@pytest.mark.parametrize("driver", ["pci-stub", "vfio-pci", "own_vfio_pci"])
def test_driver_that_takes_a_device_by_its_override_alone(driver: str) -> None:
    """Some tools clear the override once the device is there, as dpdk-devbind does."""
    assert words(device(driver), device(HOME)) == [
        "unbind from virtio-pci",
        f"set driver_override to {driver}",
        f"bind to {driver}",
        "clear driver_override",
    ]


def test_power_is_as_it_was_whatever_drivers_have_made_of_it() -> None:
    for power, meanwhile in (("on", "auto"), ("auto", "auto"), ("auto", "on")):
        before, now = replace(device(HOME), power=power), replace(device(VFIO, VFIO), power=meanwhile)
        assert words(before, now)[-1] == f"set power/control to {power}"
    assert words(replace(device(HOME), power="on"), replace(device(HOME), power="auto")) == ["set power/control to on"]


def test_nothing_to_do_for_what_is_as_it_was() -> None:
    for before in (device(), device(HOME, "x"), device(HOME, None, "pf", 0), device(HOME, None, "pf", 3)):
        assert words(before, before) == []


def test_functions_come_back_without_being_probed() -> None:
    before = device(HOME, None, "pf", 2)
    before.vfs[0] = device("pci-stub", "pci-stub", "vf0")
    now = replace(before, driver=VFIO, driver_override=VFIO, numvfs=0, vfs=[])
    assert words(before, now) == [
        "unbind from vfio-pci",
        "clear driver_override",
        "bind to virtio-pci",
        "set sriov_drivers_autoprobe to 0",
        "set sriov_numvfs to 2",
        "vf0: set driver_override to pci-stub",
        "vf0: bind to pci-stub",
        "set sriov_drivers_autoprobe to 1",
    ]


def test_functions_made_while_it_was_claimed_go_before_it_leaves() -> None:
    before = device(HOME, None, "pf", 0)
    now = replace(device(VFIO, VFIO, "pf", 4), autoprobe=True)
    assert words(before, now)[:2] == ["set sriov_numvfs to 0", "unbind from vfio-pci"]


POWER = st.sampled_from(["on", "auto"])
OVERRIDES = st.sampled_from([None, HOME, VFIO, "other"])


@st.composite
def states(draw: st.DrawFn, name: str = "pf", most: int = 2) -> DeviceState:
    driver = draw(st.sampled_from([None, HOME, VFIO]))
    if not most:
        return DeviceState(name, "pci", f"/sys/devices/{name}", driver, draw(OVERRIDES), "1:2", power=draw(POWER))
    count = draw(st.integers(0, most)) if driver else 0  # the kernel has none without a driver to make them
    functions = [draw(states(f"vf{number}", 0)) for number in range(count)]
    autoprobe = draw(st.booleans())
    return DeviceState(
        name, "pci", f"/sys/devices/{name}", driver, draw(OVERRIDES), "1:2", count, autoprobe, functions, draw(POWER)
    )


@given(states(), states(), st.integers(0, 40))
def test_every_way_back_arrives_also_when_it_is_begun_anew_halfway(
    before: DeviceState, now: DeviceState, cut: int
) -> None:
    """After any number of its steps, the rest is found again from how the device is then."""
    machine = Machine(now)
    for step in itertools.islice(restore_steps(before, _copy(now)), cut):
        machine.take(step)
    for step in list(restore_steps(before, _copy(machine.pf))):
        machine.take(step)
    assert machine.pf == before
    assert list(restore_steps(before, machine.pf)) == []


def _copy(device: DeviceState) -> DeviceState:
    return replace(device, vfs=[replace(function) for function in device.vfs])
