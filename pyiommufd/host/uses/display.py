"""The display that firmware has started on, and on which the host's console is to be seen."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...errors import Refusal
from .. import sysfs
from ..devices import HostDevice
from .folders import folders_below, listed

_SCREEN = re.compile(r"fb[0-9]+|card[0-9]+")
# Platform devices for the framebuffer that firmware has left; since Linux 6.9 below the graphics adapter.
_FIRMWARE = re.compile(r"/(simple-framebuffer|efi-framebuffer|vesa-framebuffer|vga-framebuffer)\.[0-9]+(/|$)")


def is_boot_display(device: HostDevice) -> bool:
    """Whether firmware has started on this graphics adapter."""
    return (device.class_code or 0) >> 16 == 0x03 and sysfs.read(device.sys_path / "boot_vga") == "1"


def display_refusals(device: HostDevice) -> Iterator[Refusal]:
    """Whether the device shows the host's console, or what a desktop has put in its place."""
    if not is_boot_display(device):
        return
    shown = [
        folder.name
        for folder in folders_below(device)
        if folder.parent.name in ("graphics", "drm") and _SCREEN.fullmatch(folder.name)
    ]
    shown = shown or [*_screens_of_firmware(), *_text_consoles()]
    if shown:
        yield Refusal(device.name, "boot-display", f"it is the boot display, in use as {listed(sorted(set(shown)))}")


def _screens_of_firmware() -> Iterator[str]:
    for kind in ("graphics", "drm"):
        for path in (sysfs.SYS / "class" / kind).glob("*"):
            if _SCREEN.fullmatch(path.name) and _FIRMWARE.search(str(path.resolve())):
                yield path.name


def _text_consoles() -> Iterator[str]:
    for path in (sysfs.SYS / "class/vtconsole").glob("vtcon*"):
        # "(S) VGA+" (Linux 7.3, drivers/video/console/vgacon.c).
        if "VGA" in (sysfs.read(path / "name") or "") and sysfs.read(path / "bind") == "1":
            yield "the text console"
