"""Moving a device between drivers through sysfs, and which vfio driver a device wants."""

from __future__ import annotations

import errno
import fnmatch
import os
import shutil
import subprocess

from ..errors import ClaimError
from . import sysfs
from .devices import HostDevice
from .helper import SECONDS

_MODPROBE_SECONDS = 60.0


def driver_override(device: HostDevice) -> str | None:
    """The device's ``driver_override``, or None where none is set."""
    text = sysfs.read(device.sys_path / "driver_override")
    return None if text in (None, "", "(null)") else text


def set_driver_override(device: HostDevice, driver: str | None) -> None:
    """Set ``driver_override``, or clear it (None).

    Raises:
        OSError: What the kernel answered.
    """
    sysfs.write(device.sys_path / "driver_override", f"{driver or ''}\n")


def unbind(device: HostDevice, seconds: float = SECONDS) -> None:
    """Take the device from its driver, if it is on one, and wait until it has left it.

    Raises:
        TimeoutError: The driver did not let it go in time; something still uses the device.
        OSError: What the kernel answered.
    """
    if sysfs.link_name(device.sys_path / "driver") is None:
        return
    try:
        sysfs.write_with_limit(device.sys_path / "driver/unbind", device.name, seconds)
    except OSError as error:
        # It left between the look and the write: that is what was wanted.
        if error.errno not in (errno.ENODEV, errno.ENOENT) or driver_of(device) is not None:
            raise


def bind(device: HostDevice, driver: str) -> None:
    """Put the device on a driver that is loaded, and make sure that it is there.

    Raises:
        OSError: What the kernel answered; ENODEV also where the driver took another turn.
    """
    path = sysfs.SYS / "bus" / device.subsystem / "drivers" / driver / "bind"
    sysfs.write(path, device.name)
    if driver_of(device) != driver:
        raise OSError(errno.ENODEV, f"{device.name} did not stay on {driver}", str(path))


def driver_of(device: HostDevice) -> str | None:
    """The driver that the device is on now."""
    return sysfs.link_name(device.sys_path / "driver")


def vfio_driver_for(device: HostDevice) -> str:
    """The vfio driver for this device: a variant that names its hardware, else the bus's general one.

    Variant drivers announce their devices in the kernel's module aliases, by ``vfio_pci:`` in place of
    ``pci:`` (Linux, Documentation/driver-api/vfio.rst).

    Raises:
        ClaimError: There is no vfio driver for its bus.
    """
    general = {"pci": "vfio-pci", "platform": "vfio-platform", "amba": "vfio-amba", "fsl-mc": "vfio-fsl-mc"}
    if device.subsystem not in general:
        raise ClaimError(f"{device.name}: no vfio driver takes over devices of the bus {device.subsystem!r}")
    alias = sysfs.read(device.sys_path / "modalias")
    if device.subsystem != "pci" or not alias:
        return general[device.subsystem]
    wanted = "vfio_" + alias
    # The general driver's alias matches everything; a variant's names at least the vendor.
    for pattern, module in _module_aliases("vfio_pci:"):
        if module != "vfio_pci" and fnmatch.fnmatchcase(wanted, pattern):
            return _driver_of_module(module) or module
    return general["pci"]


def _module_aliases(prefix: str) -> list[tuple[str, str]]:
    found = []
    for name in ("modules.alias", "modules.builtin.alias"):
        for line in sysfs.lines(sysfs.MODULES / os.uname().release / name):
            words = line.split()
            if len(words) == 3 and words[0] == "alias" and words[1].startswith(prefix):
                found.append((words[1], words[2]))
    return found


def _driver_of_module(module: str) -> str | None:
    for path in (sysfs.SYS / "module" / module / "drivers").glob("pci:*"):
        return path.name.removeprefix("pci:")
    return None


def module_file(module: str) -> str | None:
    """The file of a module of the running kernel below ``/lib/modules``, or None where it has none (or it is built in).

    Args:
        module: Its name, with dashes or underscores.
    """
    wanted = module.replace("-", "_")
    for line in sysfs.lines(sysfs.MODULES / os.uname().release / "modules.dep"):
        path = line.partition(":")[0]
        if path.rpartition("/")[2].partition(".")[0].replace("-", "_") == wanted:
            return path
    return None


def is_loaded(subsystem: str, driver: str) -> bool:
    """Whether the running kernel has this driver, for devices of this bus."""
    return (sysfs.SYS / "bus" / subsystem / "drivers" / driver).is_dir()


def load_driver(subsystem: str, driver: str, modalias: str | None = None) -> None:
    """Make sure that a driver is there, by modprobe where it is not.

    Args:
        subsystem: Its bus.
        driver: Its name, by which the module goes as well, mostly.
        modalias: That of a device that it drives: for a driver whose module has another name.

    Raises:
        ClaimError: It is not there and cannot be loaded.
    """
    if is_loaded(subsystem, driver):
        return
    # modprobe is in sbin, which is not on everyone's PATH.
    modprobe = shutil.which("modprobe", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if modprobe is None:
        raise ClaimError(f"the driver {driver} is not loaded, and there is no modprobe (package kmod) to load it")
    reason = ""
    for module in (driver.replace("-", "_"), modalias):
        if not module:
            continue
        try:
            done = subprocess.run(
                [modprobe, "--", module],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                check=False,
                timeout=_MODPROBE_SECONDS,
            )
            reason = reason or done.stderr.strip()
        except subprocess.TimeoutExpired:
            reason = f"it has not returned within {_MODPROBE_SECONDS:g} s"
        if is_loaded(subsystem, driver):
            return
    raise ClaimError(f"the driver {driver} is not loaded, and modprobe failed: {reason or 'no reason given'}")
