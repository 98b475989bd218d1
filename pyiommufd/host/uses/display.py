"""The display that firmware has started on, and on which the host's console is to be seen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyiommufd.errors import Refusal
from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.uses.folders import join_words
from pyiommufd.host.uses.snapshot import MachineSnapshot

_SCREEN = re.compile(r"fb[0-9]+|card[0-9]+")
# Platform devices for the framebuffer that firmware has left; since Linux 6.9 below the graphics adapter.
_FIRMWARE = re.compile(r"/(simple-framebuffer|efi-framebuffer|vesa-framebuffer|vga-framebuffer)\.[0-9]+(/|$)")
# The descriptions of the text consoles in sysfs: Linux 7.3, drivers/video/console/vgacon.c:283 and
# drivers/video/fbdev/core/fbcon.c:1023.
_TEXT, _FRAMEBUFFER = "VGA+", "frame buffer device"


def displays(devices: Iterable[HostDevice]) -> set[HostDevice]:
    """Of these devices, those without a screen of their own that may be the host's display all the same."""
    devices = list(devices)
    is_unknown = bool(_framebuffers_of_firmware())
    return {device for device in devices if _is_boot_display(device) or (is_unknown and _is_display(device))}


def _is_display(device: HostDevice) -> bool:
    return (device.class_code or 0) >> 16 == 0x03


def _is_boot_display(device: HostDevice) -> bool:
    """Whether firmware has started on this graphics adapter, as far as the adapter itself says.

    The kernel has the attribute for classes 0300 and 0001 alone (Linux 7.3, drivers/pci/pci-sysfs.c:1840).
    """
    return (device.class_code or 0) >> 8 in (0x0300, 0x0001) and sysfs.read(device.sys_path / "boot_vga") == "1"


def display_refusals(device: HostDevice, snapshot: MachineSnapshot) -> Iterator[Refusal]:
    """Whether the device shows the host's console, or what a desktop has put in its place."""
    shown = {folder for folder in snapshot.folders(device) if _is_screen(folder)}
    names = {folder.name for folder in shown}
    if _is_boot_display(device) or any(map(_is_marked, shown)):
        names = names or {*(screen.name for screen in _screens_of_firmware()), *_text_consoles()}
        if names:
            yield Refusal(device.name, "boot-display", f"it is the boot display, in use as {join_words(sorted(names))}")
        return
    # Which framebuffer the console is on the kernel does not tell: it may be on each.
    names = {name for name in names if name.startswith("fb")}
    if not names and _is_display(device):
        names = _framebuffers_of_firmware()
    if names and _has_console(_FRAMEBUFFER) and not _is_known():
        where = f"the host's console may be on it, by {join_words(sorted(names))}"
        yield Refusal(device.name, "boot-display", f"{where}: the kernel names no boot display")


def _is_screen(folder: Path) -> bool:
    return folder.parent.name in ("graphics", "drm") and _SCREEN.fullmatch(folder.name) is not None


def _is_marked(screen: Path) -> bool:
    """Whether its device is the one that firmware has started on (Linux 7.3, drivers/gpu/drm/drm_sysfs.c:514)."""
    return sysfs.read(screen / "boot_display") == "1"


def _is_known() -> bool:
    """Whether the kernel says of any device that firmware has started on it."""
    adapters = (sysfs.SYS / "bus/pci/devices").glob("*/boot_vga")
    cards = (sysfs.SYS / "class/drm").glob("card*")
    return any(sysfs.read(path) == "1" for path in adapters) or any(map(_is_marked, cards))


def _screens_of_firmware() -> Iterator[Path]:
    for kind in ("graphics", "drm"):
        for path in (sysfs.SYS / "class" / kind).glob("*"):
            folder = path.resolve()
            if _SCREEN.fullmatch(path.name) and _FIRMWARE.search(str(folder)):
                yield folder


def _framebuffers_of_firmware() -> set[str]:
    """Those of which the kernel does not show on which adapter they are."""
    top = sysfs.SYS / "devices/platform"
    return {path.name for path in _screens_of_firmware() if path.name.startswith("fb") and path.is_relative_to(top)}


def _text_consoles() -> Iterator[str]:
    if _has_console(_TEXT):
        yield "the text console"


def _has_console(kind: str) -> bool:
    """Whether a console of that kind is in use: "(S) VGA+" (Linux 7.3, drivers/tty/vt/vt.c:4304)."""
    consoles = (sysfs.SYS / "class/vtconsole").glob("vtcon*")
    return any(kind in (sysfs.read(path / "name") or "") and sysfs.read(path / "bind") == "1" for path in consoles)
