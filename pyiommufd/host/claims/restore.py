"""Computes the steps that restore a device from its current state to its recorded one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from pyiommufd.host import sysfs
from pyiommufd.host.claims.record import DeviceState
from pyiommufd.host.claims.steps import Action, Step, device_step
from pyiommufd.host.discovery.sriov import virtual_functions

Read = Callable[[Path], str | None]


def device_state(path: Path, read: Read = sysfs.read) -> DeviceState | None:
    """The current state of a device, as the record describes it; None if the device is gone.

    Args:
        path: Its folder.
        read: Reads attributes for which the kernel takes the device lock, and so may block.
    """
    subsystem = sysfs.link_name(path / "subsystem")
    if subsystem is None:
        return None
    override = read(path / "driver_override")
    vendor, device = (sysfs.read(path / name) for name in ("vendor", "device"))
    count = read(path / "sriov_numvfs") if (path / "sriov_totalvfs").exists() else None
    autoprobe = sysfs.read(path / "sriov_drivers_autoprobe")
    functions = [device_state(link, read) for link in virtual_functions(path)] if count not in (None, "0") else []
    return DeviceState(
        name=path.name,
        subsystem=subsystem,
        sys_path=str(path),
        driver=sysfs.link_name(path / "driver"),
        driver_override=None if override in (None, "", "(null)") else override,
        identity=None if vendor is None or device is None else f"{vendor[2:]}:{device[2:]}",
        numvfs=None if count is None else int(count),
        autoprobe=None if autoprobe is None else autoprobe == "1",
        vfs=[function for function in functions if function is not None],
        power=sysfs.read(path / "power/control"),
    )


def restore_steps(before: DeviceState, now: DeviceState) -> Iterator[Step]:
    """The steps from the current to the recorded state, however far a claim or a release has got.

    Args:
        before: How it was.
        now: How it is.
    """
    driver, override, count = now.driver, now.driver_override, now.numvfs or 0
    if driver != before.driver and driver is not None:
        if count:
            # vfio-pci lets a physical function go only without virtual ones, others leave them behind.
            yield device_step(before, Action.SET_VFS, "0")
            count = 0
        yield device_step(before, Action.UNBIND, driver)
        driver = None
    yield from _restore_driver(before, driver, override)
    # vfio-pci sets it to a value of its own, and so may the host driver on probe.
    if before.power is not None and (now.driver != before.driver or now.power != before.power):
        yield device_step(before, Action.SET_POWER, before.power)
    if before.numvfs is not None:
        yield from _restore_functions(before, now, count)


def _restore_driver(before: DeviceState, driver: str | None, override: str | None) -> Iterator[Step]:
    """From no driver, or the right one, to driver and override as they were."""
    if before.driver is not None and driver is None:
        # An override set while the device was on another driver would not let it back there. And these drivers take a
        # device only by its override, which who put it there may have cleared since, or by ids that were added to them.
        by_override = before.driver == "pci-stub" or "vfio" in before.driver
        wanted = before.driver if by_override or before.driver_override is not None else None
        if override != wanted:
            yield _override(before, wanted)
        yield device_step(before, Action.BIND, before.driver)
        override = wanted
    if override != before.driver_override:
        yield _override(before, before.driver_override)


def _restore_functions(before: DeviceState, now: DeviceState, count: int) -> Iterator[Step]:
    autoprobe = now.autoprobe
    if count != before.numvfs:
        if count:
            yield device_step(before, Action.SET_VFS, "0")
        if before.numvfs:
            # With autoprobe on they would go to host drivers, even those that had no driver before.
            if autoprobe:
                yield device_step(before, Action.SET_AUTOPROBE, "0")
                autoprobe = False
            yield device_step(before, Action.SET_VFS, str(before.numvfs))
            for function in before.vfs:
                yield from restore_steps(function, replace(function, driver=None, driver_override=None, power="on"))
    else:
        there = {function.name: function for function in now.vfs}
        for function in before.vfs:
            if function.name in there:
                yield from restore_steps(function, there[function.name])
    if before.autoprobe is not None and autoprobe != before.autoprobe:
        yield device_step(before, Action.SET_AUTOPROBE, str(int(before.autoprobe)))


def _override(device: DeviceState, value: str | None) -> Step:
    return device_step(device, Action.CLEAR_OVERRIDE if value is None else Action.SET_OVERRIDE, value)
