"""Taking a step: the writes to sysfs, and waiting until the machine is as the step wants it."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path

from .. import drivers, sysfs
from ..helper import Helper
from .steps import Action, Step

_log = logging.getLogger(__name__)

# A device's node comes with its vfio driver, or a little later where it is udev that makes it.
_NODE_SECONDS = 5.0


def perform(step: Step, helper: Helper) -> None:
    """Take a step, by another process, as the kernel may not answer.

    Raises:
        StuckError: The kernel has not answered in time; it may still do as asked.
        OSError: What it answered, or ENODEV where a driver took another turn.
        ClaimError: A driver could not be loaded.
    """
    _STEPS[step.action](step, helper)


def _load_driver(step: Step, _helper: Helper) -> None:
    drivers.load_driver(step.subsystem, step.value or "", sysfs.read(step.folder / "modalias"))


def _override(step: Step, helper: Helper) -> None:
    helper.write(step.folder / "driver_override", f"{step.value or ''}\n")


def _unbind(step: Step, helper: Helper) -> None:
    try:
        helper.write(step.folder / "driver/unbind", step.device)
    except OSError as error:
        # It left between the look and the write: that is what was wanted.
        if error.errno not in (errno.ENODEV, errno.ENOENT):
            raise
    driver = _driver(step)
    if driver is not None:
        raise OSError(errno.EBUSY, f"{step.device} is on {driver} after its unbind", str(step.folder / "driver"))


def _bind(step: Step, helper: Helper) -> None:
    path = sysfs.SYS / "bus" / step.subsystem / "drivers" / (step.value or "") / "bind"
    try:
        helper.write(path, step.device)
    except OSError:
        # Somebody's probe has come first, such as udev's.
        if _driver(step) != step.value:
            raise
    if _driver(step) != step.value:
        raise OSError(errno.ENODEV, f"{step.device} did not stay on {step.value}", str(path))
    _wait_for_node(step.folder)


def _vfs(step: Step, helper: Helper) -> None:
    path = step.folder / "sriov_numvfs"
    helper.write(path, step.value or "")
    count = helper.read(path)
    if count != step.value:
        raise OSError(errno.EIO, f"{step.device} has {count} virtual functions, not {step.value}", str(path))


def _autoprobe(step: Step, helper: Helper) -> None:
    helper.write(step.folder / "sriov_drivers_autoprobe", step.value or "")


_STEPS: dict[Action, Callable[[Step, Helper], None]] = {
    Action.LOAD_DRIVER: _load_driver,
    Action.SET_OVERRIDE: _override,
    Action.CLEAR_OVERRIDE: _override,
    Action.UNBIND: _unbind,
    Action.BIND: _bind,
    Action.SET_VFS: _vfs,
    Action.SET_AUTOPROBE: _autoprobe,
}


def _driver(step: Step) -> str | None:
    return sysfs.link_name(step.folder / "driver")


def _wait_for_node(folder: Path) -> None:
    """Wait for the node of a device that has come to a vfio driver; a machine without one is `check`'s to tell of."""
    for name in [path.parent.name for path in folder.glob("vfio-dev/vfio*/dev")]:
        node = Path("/dev/vfio/devices") / name
        end = time.monotonic() + _NODE_SECONDS
        while not node.exists():
            if time.monotonic() > end:
                _log.warning("%s has not appeared within %g s", node, _NODE_SECONDS)
                return
            time.sleep(0.02)
