"""The boot display."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd import list_devices
from pyiommufd.host import uses
from tests.unit.host.uses.host import Host

VGA = 0x030000


@pytest.mark.parametrize(("screen", "name"), [("drm/card0", "card0"), ("graphics/fb0", "fb0")])
@pytest.mark.parametrize("boot_vga", ["1", "0"])
def test_screen_of_its_driver(host: Host, screen: str, name: str, boot_vga: str) -> None:
    adapter = host.fake.pci("0000:00:01.0", driver="x", class_code=VGA, boot_vga=boot_vga)
    assert host.refusals() == []
    (adapter / screen).mkdir(parents=True)
    (adapter / "drm/card0-HDMI-A-1").mkdir(parents=True)
    refused = [("boot-display", f"it is the boot display, in use as {name}")]
    assert host.refusals() == (refused if boot_vga == "1" else [])


@pytest.mark.parametrize("kind", ["graphics/fb0", "drm/card0"])
def test_framebuffer_of_firmware(host: Host, kind: str) -> None:
    host.fake.pci("0000:00:01.0", class_code=VGA, boot_vga="1")
    folder = host.fake.root / "devices/platform/simple-framebuffer.0" / kind
    folder.mkdir(parents=True)
    host.fake.link(f"class/{kind}", folder)
    assert host.refusals() == [("boot-display", f"it is the boot display, in use as {kind.partition('/')[2]}")]


@pytest.mark.parametrize(
    ("name", "bind", "refused"),
    [("(S) VGA+", "1", True), ("(S) VGA+", "0", False), ("(S) dummy device", "1", False)],
)
def test_text_console(host: Host, name: str, bind: str, refused: bool) -> None:
    host.fake.pci("0000:00:01.0", class_code=VGA, boot_vga="1")
    host.fake.file("class/vtconsole/vtcon0/name", name)
    host.fake.file("class/vtconsole/vtcon0/bind", bind)
    expected = [("boot-display", "it is the boot display, in use as the text console")] if refused else []
    assert host.refusals() == expected


def card(host: Host, adapter: Path, name: str = "card0", *, boot: bool) -> None:
    """A screen of an adapter's driver: the attribute is there for the boot display alone (drm_sysfs.c:526)."""
    host.fake.file(f"{host.at(adapter)}/drm/{name}/dev", "226:0")
    host.fake.link(f"class/drm/{name}", adapter / "drm" / name)
    if boot:
        host.fake.file(f"{host.at(adapter)}/drm/{name}/boot_display", "1")


def framebuffer(host: Host, above: Path, name: str = "fb0") -> None:
    """A framebuffer (drivers/video/fbdev/core/fbsysfs.c:498)."""
    (above / "graphics" / name).mkdir(parents=True)
    host.fake.link(f"class/graphics/{name}", above / "graphics" / name)


def console(host: Host, *, bound: bool = True) -> None:
    """The consoles as the kernel shows them where framebuffers have one (drivers/tty/vt/vt.c:4304)."""
    for number, (name, bind) in enumerate([("(S) dummy device", False), ("(M) frame buffer device", bound)]):
        host.fake.file(f"class/vtconsole/vtcon{number}/name", name)
        host.fake.file(f"class/vtconsole/vtcon{number}/bind", str(int(bind)))
    (host.fake.root / "class/graphics/fbcon").mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("class_code", [0x030000, 0x030200, 0x038000])
def test_display_of_any_class_that_its_driver_says_is_the_boot_display(host: Host, class_code: int) -> None:
    adapter = host.fake.pci("0000:00:01.0", driver="i915", class_code=class_code)
    other = host.fake.pci("0000:00:02.0", driver="amdgpu", class_code=0x030000, boot_vga="0")
    card(host, adapter, boot=True)
    card(host, other, "card1", boot=False)
    framebuffer(host, other)
    console(host)
    assert host.refusals() == [("boot-display", "it is the boot display, in use as card0")]
    assert host.refusals("0000:00:02.0") == []
    assert set(uses.in_use(list_devices())) == {host.device()}


def test_framebuffers_where_the_kernel_names_no_boot_display(host: Host) -> None:
    """On which of them the console is, it does not say."""
    for number, class_code in enumerate([0x038000, 0x030200, 0x030000]):
        adapter = host.fake.pci(f"0000:00:0{number + 1}.0", driver="x", class_code=class_code)
        card(host, adapter, f"card{number}", boot=False)
        if number < 2:
            framebuffer(host, adapter, f"fb{number}")
    assert host.refusals() == []
    console(host)
    reason = "the host's console may be on it, by fb{}: the kernel names no boot display"
    assert host.refusals("0000:00:01.0") == [("boot-display", reason.format(0))]
    assert host.refusals("0000:00:02.0") == [("boot-display", reason.format(1))]
    assert host.refusals("0000:00:03.0") == []
    assert {device.name[8:] for device in uses.in_use(list_devices())} == {"01.0", "02.0"}
    console(host, bound=False)
    assert host.refusals() == []
    assert set(uses.in_use(list_devices())) == set()


@pytest.mark.parametrize("mark", ["boot_vga", "boot_display"])
def test_framebuffers_where_it_names_one(host: Host, mark: str) -> None:
    adapter = host.fake.pci("0000:00:01.0", driver="x", class_code=0x030200)
    framebuffer(host, adapter)
    console(host)
    boot = host.fake.pci("0000:00:02.0", class_code=VGA, boot_vga=str(int(mark == "boot_vga")))
    card(host, boot, boot=mark == "boot_display")
    assert host.refusals() == []
    assert host.refusals("0000:00:02.0") == [("boot-display", "it is the boot display, in use as card0")]


def test_framebuffer_of_firmware_may_be_on_any_display(host: Host) -> None:
    """Before Linux 6.9 the kernel does not show on which adapter it is."""
    host.fake.pci("0000:00:01.0", class_code=0x038000)
    host.fake.pci("0000:00:02.0", class_code=0x020000)
    framebuffer(host, host.fake.root / "devices/platform/efi-framebuffer.0")
    assert set(uses.in_use(list_devices())) == set()
    console(host)
    reason = "the host's console may be on it, by fb0: the kernel names no boot display"
    assert host.refusals() == [("boot-display", reason)]
    assert set(uses.in_use(list_devices())) == {host.device()}


def test_framebuffer_of_firmware_below_its_adapter(host: Host) -> None:
    adapter = host.fake.pci("0000:00:01.0", class_code=0x038000)
    host.fake.pci("0000:00:02.0", class_code=0x038000)
    framebuffer(host, adapter / "efi-framebuffer.0")
    console(host)
    assert [kind for kind, _ in host.refusals()] == ["boot-display"]
    assert host.refusals("0000:00:02.0") == []
