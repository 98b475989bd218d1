"""Uses of this machine's own devices: what is mounted and routed here belongs to somebody."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd import list_devices
from pyiommufd.host import uses


def test_disks_that_are_mounted_here_are_seen() -> None:
    """Each mounted block device below a PCI device is in the refusals of that device."""
    seen = 0
    devices = {str(device.sys_path): device for device in list_devices("pci")}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        block = Path("/sys/dev/block") / line.split()[2]
        if not block.exists():
            continue
        above = [devices[str(path)] for path in block.resolve().parents if str(path) in devices]
        if above:
            seen += 1
            assert "mounted" in {refusal.kind for refusal in uses.refusals(above[0])}, line
    if not seen:
        pytest.skip("nothing is mounted here from a disk of a PCI device")


def test_card_of_the_default_route_is_seen() -> None:
    cards = [device for device in list_devices("pci") if set(uses._interfaces(device)) & uses._default_routes()]
    if not cards:
        pytest.skip("no default route leaves here by a PCI device")
    for card in cards:
        assert "default-route" in {refusal.kind for refusal in uses.refusals(card)}


@pytest.mark.parametrize(
    ("text", "plain"),
    [("/a", "/a"), ("/a\\040b", "/a b"), ("\\011\\012", "\t\n"), ("/a\\134040b", "/a\\040b"), ("\\134", "\\")],
)
def test_escapes_of_proc(text: str, plain: str) -> None:
    assert uses._unescape(text) == plain
