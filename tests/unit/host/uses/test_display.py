"""The boot display."""

from __future__ import annotations

import pytest

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
