"""Moving a device between drivers through sysfs, and which vfio driver a device wants."""

from __future__ import annotations

import errno
import fnmatch
import os
import shutil
import subprocess
from pathlib import Path

from ..errors import ClaimError
from . import sysfs
from .devices import HostDevice

# How long a driver may take to let a device go before the caller is told. A disk flushes its cache here.
UNBIND_SECONDS = 30.0


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


def unbind(device: HostDevice, seconds: float = UNBIND_SECONDS) -> None:
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
        text = sysfs.read(Path("/lib/modules") / os.uname().release / name)
        for line in (text or "").splitlines():
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
    text = sysfs.read(Path("/lib/modules") / os.uname().release / "modules.dep") or ""
    for line in text.splitlines():
        path = line.partition(":")[0]
        if path.rpartition("/")[2].partition(".")[0].replace("-", "_") == wanted:
            return path
    return None


def load_driver(subsystem: str, driver: str) -> None:
    """Make sure that a driver is there, by modprobe where it is not.

    Raises:
        ClaimError: It is not there and cannot be loaded.
    """
    path = sysfs.SYS / "bus" / subsystem / "drivers" / driver
    if path.is_dir():
        return
    # modprobe is in sbin, which is not on everyone's PATH.
    modprobe = shutil.which("modprobe", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if modprobe is None:
        raise ClaimError(f"the driver {driver} is not loaded, and there is no modprobe (package kmod) to load it")
    done = subprocess.run(
        [modprobe, driver.replace("-", "_")],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode or not path.is_dir():
        raise ClaimError(
            f"the driver {driver} is not loaded, and modprobe failed: {done.stderr.strip() or 'no reason given'}"
        )
