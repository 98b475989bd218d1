"""Taking a step: the writes to sysfs, and waiting until the machine is as the step wants it."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path

from pyiommufd.errors import Cause, ClaimError, Fix
from pyiommufd.host import drivers, sysfs
from pyiommufd.host.checks.lacks import no_vfio_driver
from pyiommufd.host.claims.steps import Action, Step
from pyiommufd.host.discovery.devices import from_sys_path
from pyiommufd.host.worker import StuckError, Worker

_log = logging.getLogger(__name__)

# A device's node comes with its vfio driver, or a little later where it is udev that makes it.
_NODE_SECONDS = 5.0


def perform(step: Step, worker: Worker) -> None:
    """Carry out a step; what may block for ever in the kernel is done by the worker process.

    Raises:
        StuckError: The kernel has not answered in time; it may still do as asked.
        OSError: The kernel's errno, or ENODEV if the device ended up on another driver.
        ClaimError: A driver could not be loaded, or none of the host's takes the device.
    """
    _STEPS[step.action](step, worker)


def _load_driver(step: Step, _worker: Worker) -> None:
    driver, alias = step.value or "", sysfs.read(step.folder / "modalias")
    # By a device's own alias its host driver would be loaded, and take a device that has none.
    if "vfio" not in driver:
        drivers.load_driver(step.subsystem, driver, alias)
        return
    try:
        drivers.load_driver(step.subsystem, driver, alias and f"vfio_{alias}")
    except ClaimError as error:
        lack = no_vfio_driver(driver)
        raise ClaimError(str(error), Cause(lack.summary, lack.evidence, lack.fix)) from error


def _override(step: Step, worker: Worker) -> None:
    worker.write(step.folder / "driver_override", f"{_named(step) if step.value else ''}\n")


def _unbind(step: Step, worker: Worker) -> None:
    try:
        worker.write(step.folder / "driver/unbind", step.target)
    except OSError as error:
        # It left between the look and the write: that is what was wanted.
        if error.errno not in (errno.ENODEV, errno.ENOENT):
            raise
    driver = _driver(step)
    if driver is not None:
        raise OSError(errno.EBUSY, f"{step.target} is on {driver} after its unbind", str(step.folder / "driver"))


def _bind(step: Step, worker: Worker) -> None:
    driver = _named(step)
    path = _drivers(step) / driver / "bind"
    try:
        worker.write(path, step.target)
    except OSError:
        # Another probe, such as one triggered by udev, was faster.
        if _driver(step) != driver:
            raise
    if _driver(step) != driver:
        raise OSError(errno.ENODEV, f"{step.target} did not stay on {driver}", str(path))
    wait_for_node(step.folder)


def _probe(step: Step, worker: Worker) -> None:
    reason = ""
    if alias := sysfs.read(step.folder / "modalias"):
        reason = drivers.modprobe(alias, worker.keep)
    # A driver that was just loaded may have taken the device.
    if _driver(step) is None:
        try:
            worker.write(_drivers(step).parent / "drivers_probe", step.target)
        except StuckError:
            raise
        except OSError as error:
            reason = str(error)
    if _driver(step) is not None:
        _past_added_ids(step, worker)
    if not _is_on_host_driver(step):
        known = f", though {step.value} announce it" if step.value else ""
        way = (
            f"where it had none before either: echo > {step.folder}/driver_override; "
            f"echo {step.target} > {step.folder}/driver/unbind"
        )
        why = f" ({reason})" if reason else ""
        raise ClaimError(f"no host driver takes {step.target}{known}{why}", Fix(way, way))


def _past_added_ids(step: Step, worker: Worker) -> None:
    """Put a device on its host driver that the kernel has bound to vfio-pci or pci-stub once more.

    They take it without an override where its ids were added to theirs (``new_id``; ``vfio-pci.ids=``), if they come
    before the host's driver in the kernel's list. So each of the others is asked; one whose ids are not the device's
    answers ENODEV.
    """
    known = (step.value or "").split(", ")
    others = [path for path in _drivers(step).iterdir() if path.name != "pci-stub" and "vfio" not in path.name]
    for path in sorted(others, key=lambda path: (path.name not in known, path.name)):
        if _is_on_host_driver(step):
            return
        if (driver := _driver(step)) is not None:
            worker.write(_drivers(step) / driver / "unbind", step.target)
        try:
            worker.write(path / "bind", step.target)
        except StuckError:
            raise
        except OSError:
            continue


def _vfs(step: Step, worker: Worker) -> None:
    path = step.folder / "sriov_numvfs"
    try:
        worker.write(path, step.value or "")
    except FileNotFoundError as error:  # what the kernel answers for a driver without sriov_configure
        driver = _driver(step)
        why = f"the driver {driver} makes no virtual functions; vfio-pci does where it was loaded with enable_sriov=1"
        if driver is None:
            why = f"{step.target} has no driver that could make virtual functions"
        raise ClaimError(f"{step}: {why}") from error
    count = worker.read(path)
    if count != step.value:
        raise OSError(errno.EIO, f"{step.target} has {count} virtual functions, not {step.value}", str(path))


def _attribute(step: Step, worker: Worker) -> None:
    name = "power/control" if step.action is Action.SET_POWER else "sriov_drivers_autoprobe"
    worker.write(step.folder / name, step.value or "")


_STEPS: dict[Action, Callable[[Step, Worker], None]] = {
    Action.LOAD_DRIVER: _load_driver,
    Action.SET_OVERRIDE: _override,
    Action.CLEAR_OVERRIDE: _override,
    Action.UNBIND: _unbind,
    Action.BIND: _bind,
    Action.PROBE: _probe,
    Action.SET_VFS: _vfs,
    Action.SET_AUTOPROBE: _attribute,
    Action.SET_POWER: _attribute,
}


def _driver(step: Step) -> str | None:
    return sysfs.link_name(step.folder / "driver")


def _drivers(step: Step) -> Path:
    """The folder of the drivers of the device's bus."""
    return sysfs.SYS / "bus" / step.subsystem / "drivers"


def _named(step: Step) -> str:
    """The step's driver name, in the spelling that the loaded driver itself uses."""
    return drivers.loaded_name(step.subsystem, step.value or "") or step.value or ""


def _is_on_host_driver(step: Step) -> bool:
    return drivers.is_on_host_driver(from_sys_path(step.folder))


def wait_for_node(folder: Path) -> None:
    """Wait for the node of a device that has come to a vfio driver; a machine without one is `check`'s to tell of."""
    for name in [path.parent.name for path in folder.glob("vfio-dev/*/dev")]:
        node = Path("/dev/vfio/devices") / name
        end = time.monotonic() + _NODE_SECONDS
        while not node.exists():
            if time.monotonic() > end:
                _log.warning("%s has not appeared within %g s", node, _NODE_SECONDS)
                return
            time.sleep(0.02)
