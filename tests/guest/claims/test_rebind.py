"""Rebind: devices that another tool left on vfio-pci, pci-stub or no driver go to their host drivers."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from click.testing import CliRunner, Result

from pyiommufd import (
    ClaimError,
    ClaimRefusedError,
    CloseError,
    DeviceFile,
    HostDevice,
    list_devices,
    plan_claim,
    recover,
    release,
)
from pyiommufd.cli.group import cli
from pyiommufd.host import drivers, sysfs
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.rebind import plan_rebind
from pyiommufd.host.claims.record import DeviceState
from pyiommufd.host.uses import FORCIBLE
from tests.guest.claims.test_kill import cut_off, interrupt, kill_at, points

State = dict[str, DeviceState]
Leave = Callable[[HostDevice, str | None], None]


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def ids(device: HostDevice) -> str:
    return f"{device.vendor_id:04x} {device.device_id:04x}"


def leave(device: HostDevice, how: str | None) -> None:
    """Leave a device as another tool would: on a driver by its override, or one cleared since, or by its ids."""
    drivers.unbind(device)
    driver, _, way = (how or "").partition(" ")
    if way == "by ids":
        # The driver takes what matches and has none at once.
        sysfs.write(sysfs.SYS / "bus/pci/drivers" / driver / "new_id", ids(device))
    elif driver:
        drivers.set_driver_override(device, driver)
        drivers.bind(device, driver)
        if way == "cleared":
            drivers.set_driver_override(device, None)
    assert device.refreshed().driver == (driver or None)


def come_back(device: HostDevice, home: str | None) -> None:
    for driver in ("vfio-pci", "pci-stub"):
        try:
            sysfs.write(sysfs.SYS / "bus/pci/drivers" / driver / "remove_id", ids(device))
        except OSError:
            continue  # it had not been added
    if device.refreshed().driver != home:
        drivers.unbind(device)
        drivers.set_driver_override(device, home)
        if home:
            drivers.bind(device, home)
    drivers.set_driver_override(device, None)


@pytest.fixture(scope="session")
def usb() -> HostDevice:
    """A device whose host driver comes after vfio-pci in the kernel's list."""
    return next(device for device in list_devices("pci") if device.driver == "xhci_hcd")


@pytest.fixture
def port(usb: HostDevice) -> HostDevice:
    """The port that a device is behind."""
    return next(device for device in list_devices("pci") if device.sys_path == usb.sys_path.parent)


@pytest.fixture(autouse=True)
def back(as_before: State, rng: HostDevice, usb: HostDevice, port: HostDevice, pf: HostDevice) -> Iterator[None]:
    yield
    for device in (rng, usb, port, pf):
        come_back(device, device.driver)


@pytest.mark.parametrize(
    "how",
    ["vfio-pci", "vfio-pci cleared", "vfio-pci by ids", "pci-stub", "pci-stub cleared", "pci-stub by ids", None],
)
@pytest.mark.parametrize("kind", ["rng", "usb"])
def test_goes_home(
    request: pytest.FixtureRequest, kind: str, how: str | None, as_before: State, state: Callable[[], State]
) -> None:
    device: HostDevice = request.getfixturevalue(kind)
    leave(device, how)
    left = state()
    dry = run("rebind", device.name, "--dry-run")
    assert state() == left
    real = run("rebind", device.name)
    assert real.stdout == dry.stdout
    lines = [line.partition(": ")[2] for line in real.stdout.splitlines()]
    assert ("clear driver_override" in lines) == (left[device.name].driver_override is not None)
    assert (f"unbind from {left[device.name].driver}" in lines) == (how is not None)
    assert lines[-1].startswith("let its host driver take it: ")
    assert real.stderr == f"{device.name} is on {device.driver}\n"
    assert state() == as_before
    again = run("rebind", device.name)
    assert (again.stdout, again.stderr) == ("", f"{device.name} is on {device.driver} already: nothing to do\n")


@pytest.mark.long
def test_bridge_goes_back_to_its_driver(port: HostDevice, as_before: State, state: Callable[[], State]) -> None:
    assert port.is_bridge
    assert port.driver == "pcieport"
    drivers.unbind(port)
    assert run("rebind", port.name).stderr == f"{port.name} is on pcieport\n"
    assert state() == as_before


@pytest.mark.long
@pytest.mark.parametrize("how", ["vfio-pci", "vfio-pci cleared", "pci-stub", None])
def test_what_no_driver_takes_is_put_back(
    alone: HostDevice, rng: HostDevice, how: str | None, state: Callable[[], State]
) -> None:
    leave(alone, how)
    leave(rng, "vfio-pci")
    try:
        left = state()
        failed = run("rebind", alone.name, status=1)
        assert f"no host driver takes {alone.name}" in failed.stderr
        assert "rolled back" in failed.stderr
        assert state() == left
        # Each by itself: what has gone home stays there, as the host may be at work with it.
        first, second = sorted((alone, rng), key=lambda device: str(device.sys_path))
        run("rebind", alone.name, rng.name, status=1)
        assert (rng.refreshed().driver == rng.driver) == (first == rng)
        assert second.refreshed().driver == left[second.name].driver
        assert state()[alone.name] == left[alone.name]
    finally:
        come_back(alone, None)


def test_device_that_a_process_holds(rng: HostDevice, as_before: State, state: Callable[[], State]) -> None:
    leave(rng, "vfio-pci")
    left = state()
    with DeviceFile(rng) as file:
        for arguments in (("rebind", rng.name), ("rebind", rng.name, "--dry-run")):
            refused = run(*arguments, status=1)
            assert refused.stdout == ""
            assert "the rebind is refused" in refused.stderr
            assert f"fd {file.fileno()} [held]" in refused.stderr
        assert state() == left
    run("rebind", rng.name)
    assert state() == as_before


@pytest.mark.long
def test_group_that_a_process_holds(first: HostDevice, neighbour: HostDevice, state: Callable[[], State]) -> None:
    """The kernel would let no host driver into the group: EINVAL by ``drivers_probe``."""
    leave(neighbour, "vfio-pci")
    leave(first, "vfio-pci")
    left = state()
    try:
        with DeviceFile(first):
            (refusal,) = plan_rebind(neighbour).refusals
            assert (refusal.device, refusal.kind) == (neighbour.name, "held")
            assert refusal.reason.startswith("its IOMMU group is in use: this process (pid ")
            with pytest.raises(ClaimRefusedError, match="the rebind is refused"):
                plan_rebind(neighbour).apply()
        assert state() == left
        (device,) = plan_rebind(neighbour).apply()
        assert device.driver == neighbour.driver
    finally:
        come_back(first, None)
        come_back(neighbour, neighbour.driver)


def test_device_that_is_claimed(rng: HostDevice, state: Callable[[], State]) -> None:
    with plan_claim(rng).apply():
        claimed = state()
        for force in ((), FORCIBLE):
            plan = plan_rebind(rng, force=force)
            assert "claimed" in {refusal.kind for refusal in plan.refusals}
            with pytest.raises(ClaimRefusedError, match="claimed already"):
                plan.apply()
        assert state() == claimed


@pytest.mark.long
def test_plan_that_is_no_longer_what_it_was(rng: HostDevice) -> None:
    leave(rng, "vfio-pci")
    plan = plan_rebind(rng)
    plan_rebind(rng).apply()
    with pytest.raises(ClaimError, match="plan again"):
        plan.apply()


@pytest.mark.long
def test_rebind_that_is_killed_at_each_step(rng: HostDevice, state: Callable[[], State]) -> None:
    def again() -> None:
        if rng.refreshed().driver == rng.driver:
            leave(rng, "vfio-pci")

    again()
    left, work = state(), lambda: plan_rebind(rng).apply()
    whole = cut_off(work)
    assert whole.status == 0
    for point in points(whole.changes):
        again()
        kill_at(point, work)
        recover()
        assert state() == left, point
        assert journal.records() == [], point


@pytest.mark.long
def test_signal_undoes_it(rng: HostDevice, state: Callable[[], State]) -> None:
    leave(rng, "vfio-pci")
    left = state()
    cut = cut_off(lambda: plan_rebind(rng).apply(), 3, partial(interrupt, signal.SIGTERM))
    assert cut.status == -signal.SIGTERM
    assert state() == left
    assert journal.records() == []


@pytest.mark.long
def test_recovery_leaves_what_the_host_works_with_by_then(pf: HostDevice, state: Callable[[], State]) -> None:
    """Killed when it was home already, and the record still there: by the recovery a disk may be mounted."""
    before = state()
    leave(pf, "vfio-pci")
    work = lambda: plan_rebind(pf).apply()  # noqa: E731
    whole = cut_off(work)
    leave(pf, "vfio-pci")
    last = next(point for point in points(whole.changes) if point.what == "remove the record")
    kill_at(last, work)
    assert len(journal.records()) == 1
    (node,) = pf.sys_path.glob("nvme/nvme*")
    with open(f"/dev/{node.name}", "rb"):
        with pytest.raises(
            CloseError, match=rf"{pf.name} stays as it is.*/dev/{node.name} is held open.*leave=\['{pf.name}'\]"
        ):
            recover()
        assert pf.refreshed().driver == pf.driver
        assert len(journal.records()) == 1
        assert release(leave=pf) == []
    assert journal.records() == []
    assert state() == before
