"""Moving a device between drivers through sysfs, and which vfio driver a device wants."""

from __future__ import annotations

import errno
import fnmatch
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyiommufd.errors import ClaimError
from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.programs import system_program
from pyiommufd.host.worker import SECONDS, Worker
from pyiommufd.nearest import did_you_mean

_MODPROBE_SECONDS = 60.0

GENERAL = {"pci": "vfio-pci", "platform": "vfio-platform", "amba": "vfio-amba", "fsl-mc": "vfio-fsl-mc"}
"""The vfio driver of each bus that takes any of its devices."""


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
        with Worker() as worker:
            worker.write(device.sys_path / "driver/unbind", device.name, seconds)
    except OSError as error:
        # It left between the look and the write: that is what was wanted.
        if error.errno not in (errno.ENODEV, errno.ENOENT) or driver_of(device) is not None:
            raise


def bind(device: HostDevice, driver: str) -> None:
    """Put the device on a driver that is loaded, and make sure that it is there.

    Raises:
        OSError: The kernel's errno; ENODEV also if the device did not stay on the driver.
    """
    path = sysfs.SYS / "bus" / device.subsystem / "drivers" / driver / "bind"
    sysfs.write(path, device.name)
    if driver_of(device) != driver:
        raise OSError(errno.ENODEV, f"{device.name} did not stay on {driver}", str(path))


def driver_of(device: HostDevice) -> str | None:
    """The driver that the device is on now."""
    return sysfs.link_name(device.sys_path / "driver")


def is_on_host_driver(device: HostDevice) -> bool:
    """Whether the device is on a host driver, rather than on none, pci-stub or a vfio driver."""
    return device.driver is not None and not device.on_vfio and device.driver != "pci-stub"


def vfio_driver_for(device: HostDevice, named: str | None = None) -> str:
    """The vfio driver for this device: a variant that names its hardware, else the bus's general one.

    Variant drivers announce their devices in the kernel's module aliases, by ``vfio_pci:`` in place of ``pci:`` (Linux,
    Documentation/driver-api/vfio.rst). Of several that match it is the one with the fewest wildcards, the first of
    these where there are several, as libvirt picks (src/util/virpci.c, virPCIDeviceFindBestVFIOVariant).

    Args:
        device: The device.
        named: The vfio driver that it is to be instead, by its own name or its module's, with dashes or underscores.

    Raises:
        ClaimError: There is no vfio driver for its bus; or the one named is not available, or is not a vfio driver.
        TypeError: The name is not a string.
    """
    if device.subsystem not in GENERAL:
        raise ClaimError(f"{device.name}: no vfio driver takes over devices of the bus {device.subsystem!r}")
    general = GENERAL[device.subsystem]
    if named is not None:
        return _vfio_driver_named(device, named)
    alias = sysfs.read(device.sys_path / "modalias")
    if device.subsystem != "pci" or not alias:
        return general
    matching = _matching("vfio_pci:", f"vfio_{alias}")
    # The general driver's alias matches everything; a variant's names at least the vendor.
    variants = [(pattern, module) for pattern, module in matching if module != "vfio_pci"]
    if not variants:
        return general
    _, module = min(variants, key=lambda variant: variant[0].count("*"))
    return _vfio_driver_of(module)


def _vfio_driver_of(module: str) -> str:
    return GENERAL["pci"] if module == "vfio_pci" else _driver_of_module("pci", module)


def vfio_drivers(bus: str) -> dict[str, str]:
    """The vfio drivers for devices of a bus, by their own names or those of their modules.

    Args:
        bus: One of `GENERAL`.
    """
    # Those that are there, by their names: not every kernel has aliases of what is built in (6.12 has none). And those
    # that can be loaded, by their modules' aliases.
    known = {driver: driver for driver in _loaded(bus) if "vfio" in driver}
    if module_file(GENERAL[bus]) is not None:
        known[GENERAL[bus]] = GENERAL[bus]
    if bus == "pci":
        known |= {module: _vfio_driver_of(module) for _, module in _module_aliases("vfio_pci:")}
    return known


def _vfio_driver_named(device: HostDevice, named: str) -> str:
    if not isinstance(named, str):
        raise TypeError(f"the name of a driver is a str, not {type(named).__name__}")
    wanted, bus = _plain(named), device.subsystem
    known = vfio_drivers(bus)
    for module, driver in known.items():
        if wanted in (_plain(module), _plain(driver)):
            return driver
    there = loaded_name(bus, named) is not None or module_file(named) is not None
    what = f"the driver {named} is not a vfio driver" if there else f"there is no driver {named} here"
    choice = ", ".join(dict.fromkeys(known.values())) or "none"
    near = did_you_mean(named, known)
    raise ClaimError(f"{device.name}: {what}; the vfio drivers available for the bus {bus}: {choice}{near}")


def host_drivers_for(device: HostDevice) -> tuple[str, ...]:
    """The drivers that announce this device in the kernel's module aliases; loading them by that may be forbidden.

    None where nothing is on record: not every kernel has aliases of what is built in (6.12 has none).
    """
    alias = sysfs.read(device.sys_path / "modalias")
    if not alias:
        return ()
    matching = _matching(f"{alias.partition(':')[0]}:", alias)
    return tuple(dict.fromkeys(_driver_of_module(device.subsystem, module) for _, module in matching))


def _matching(prefix: str, alias: str) -> list[tuple[str, str]]:
    # As modprobe matches them, by fnmatch(3): a bracket in a pattern begins a set of characters.
    return [(pattern, module) for pattern, module in _module_aliases(prefix) if fnmatch.fnmatchcase(alias, pattern)]


def _module_aliases(prefix: str) -> list[tuple[str, str]]:
    """Patterns of aliases and their modules, in the order of the files."""
    folder, found = sysfs.MODULES / os.uname().release, []
    for name in ("modules.alias", "modules.builtin.alias"):
        for line in _entries(folder / name, "\n", f"alias {prefix}"):
            words = line.split()
            if len(words) == 3 and words[0] == "alias" and words[1].startswith(prefix):
                found.append((words[1], words[2]))
    # depmod has those of what is built in for libkmod alone, as modules.builtin.alias.bin. The kernel's own file has
    # "module.alias=pattern", each with a zero byte after it (Linux 7.3, scripts/mod/modpost.c, alias->builtin_modname).
    for text in _entries(folder / "modules.builtin.modinfo", "\0", f".alias={prefix}"):
        module, _, pattern = text.partition(".alias=")
        if pattern.startswith(prefix):
            found.append((pattern, module))
    return found


def _entries(file: Path, end: str, text: str) -> Iterator[str]:
    """The entries of a file that have this text in them: a few of the tens of thousands in a distribution's."""
    data, wanted, stop = sysfs.content(file) or b"", os.fsencode(text), os.fsencode(end)
    at = data.find(wanted)
    while at >= 0:
        last = data.find(stop, at)
        last = len(data) if last < 0 else last
        yield os.fsdecode(data[data.rfind(stop, 0, at) + 1 : last])
        at = data.find(wanted, last)


def _driver_of_module(bus: str, module: str) -> str:
    """The driver that a module has for this bus; one that is not loaded is taken to have its module's name."""
    for path in (sysfs.SYS / "module" / module / "drivers").glob(f"{bus}:*"):
        return path.name.removeprefix(f"{bus}:")
    return loaded_name(bus, module) or module


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _loaded(bus: str) -> list[str]:
    """The drivers of a bus, by name."""
    try:
        return sorted(os.listdir(sysfs.SYS / "bus" / bus / "drivers"))  # noqa: PTH208 (names alone)
    except OSError:
        return []


def loaded_name(bus: str, driver: str) -> str | None:
    """How a driver of this bus that is there spells its name, or None where it is not there.

    Args:
        bus: The bus.
        driver: Its name, with dashes or underscores, as far as its module's name tells: the module ``xe_vfio_pci`` has
            the driver ``xe-vfio-pci``, others call theirs as they are called themselves.
    """
    there = _loaded(bus)
    return driver if driver in there else next((name for name in there if _plain(name) == _plain(driver)), None)


def module_file(module: str) -> str | None:
    """The file of a module of the running kernel below ``/lib/modules``, or None where it has none (or it is built in).

    Args:
        module: Its name, with dashes or underscores.
    """
    wanted = _plain(module)
    for line in sysfs.lines(sysfs.MODULES / os.uname().release / "modules.dep"):
        path = line.partition(":")[0]
        if _plain(path.rpartition("/")[2].partition(".")[0]) == wanted:
            return path
    return None


def is_loaded(subsystem: str, driver: str) -> bool:
    """Whether the running kernel has this driver, for devices of this bus."""
    return loaded_name(subsystem, driver) is not None


def load_driver(subsystem: str, driver: str, modalias: str | None = None) -> None:
    """Make sure that a driver is there, by modprobe where it is not.

    Args:
        subsystem: Its bus.
        driver: Its name, by which the module goes as well, mostly.
        modalias: That of a device that it drives: for a driver whose module has another name.

    Raises:
        ClaimError: It is not there and cannot be loaded.
    """
    reason = ""
    for module in (_plain(driver), modalias):
        if is_loaded(subsystem, driver):
            return
        if module:
            failure = modprobe(module)
            reason = reason or failure
    if not is_loaded(subsystem, driver):
        raise ClaimError(f"the driver {driver} is not loaded, and loading it failed: {reason or 'no reason given'}")


def modprobe(module: str, keep: Sequence[int] = ()) -> str:
    """Load a module, or those that announce a device, and return why that failed; empty where it did not.

    Args:
        module: Its name; or the alias of a device: what the machine's configuration forbids is then not loaded.
        keep: File descriptors that modprobe holds as well, such as that of a lock.
    """
    program = system_program("modprobe")
    if program is None:
        return "there is no modprobe (package kmod)"
    try:
        done = subprocess.run(
            [program, "--", module],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=_MODPROBE_SECONDS,
            pass_fds=keep,
        )
    except subprocess.TimeoutExpired:
        return f"modprobe has not returned within {_MODPROBE_SECONDS:g} s"
    return done.stderr.strip()
