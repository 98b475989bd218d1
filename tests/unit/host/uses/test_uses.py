"""Uses of this machine's own devices, and which of many devices are looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd import list_devices, plan_claim
from pyiommufd.host import uses
from pyiommufd.host.claims import journal
from pyiommufd.host.uses.netlink import links
from pyiommufd.host.uses.network import interfaces
from pyiommufd.host.uses.snapshot import MachineSnapshot
from tests.unit.host.uses.host import Host


def test_disks_that_are_mounted_here_are_seen() -> None:
    """Each mounted block device below a PCI device is in the refusals of that device."""
    seen = 0
    devices = {str(device.sys_path): device for device in list_devices("pci")}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        block = Path("/sys/dev/block") / words[2]
        if not block.exists():
            continue
        above = [devices[str(path)] for path in block.resolve().parents if str(path) in devices]
        if above:
            seen += 1
            kind = "root" if words[4] == "/" else "mounted"
            assert {kind, "root"} & {refusal.kind for refusal in uses.refusals(above[0])}, line
            assert above[0] in uses.in_use(devices.values())
    if not seen:
        pytest.skip("nothing is mounted here from a disk of a PCI device")


def test_card_of_the_default_route_is_seen() -> None:
    ways = {index for index, link in links().items() if link.default_routes}
    snapshot = MachineSnapshot(thorough=False)
    cards = [device for device in list_devices("pci") if set(interfaces(device, snapshot)) & ways]
    if not cards:
        pytest.skip("no default route leaves here by a PCI device")
    for card in cards:
        assert {"default-route", "address"} <= {refusal.kind for refusal in uses.refusals(card)}


def test_each_kind_of_use_is_found_among_many_devices(host: Host) -> None:
    """Every device that `refusals` has something about is in `in_use`; and none other."""
    fake = host.fake
    names = [f"0000:00:{slot:02x}.0" for slot in range(1, 12)]
    disk, card, elsewhere, physical, share, display, held, idle, plain, stray, bridge = names
    host.disk(fake.pci(disk, driver="nvme") / "nvme/nvme0/nvme0n1", "259:0")
    host.mount("259:0", "/srv")
    host.interface(fake.pci(card), "eth0", "192.0.2.1/24")
    (fake.pci(elsewhere) / "net").mkdir()
    pf = fake.pci(physical, class_code=0x0B4000)
    host.fake.link(f"{host.at(pf)}/virtfn0", fake.pci("0000:00:1f.0", driver="qat"))
    fake.file(f"{host.at(fake.pci(share, driver='virtio-pci'))}/virtio0/mount_tag", "share")
    host.mount("0:50", "/data", source="share", kind="9p", options=",trans=virtio")
    (fake.pci(display, class_code=0x030000, boot_vga="1") / "drm/card0").mkdir(parents=True)
    host.node(fake.pci(held, class_code=0x040300) / "sound/card0/pcmC0D0p", "char", "1:3", "snd/pcmC0D0p")
    host.process(70, "player", holds="/dev/null")
    host.disk(fake.pci(idle, driver="nvme") / "nvme/nvme1/nvme1n1", "259:8")
    fake.pci(plain)
    fake.pci(stray, class_code=0x030000, boot_vga="0")
    fake.pci(bridge, class_code=0x060400, driver="pcieport")
    used = uses.in_use(list_devices())
    assert {device.name for device in used} == {disk, card, elsewhere, physical, share, display, held}
    assert used == {
        device: {refusal.kind for refusal in found} for device in list_devices() if (found := uses.refusals(device))
    }
    kinds = {refusal.kind for device in used for refusal in uses.refusals(device)}
    assert kinds == {"mounted", "address", "held", "vfs", "boot-display"}


def test_uses_of_what_goes_with_a_device_are_its_own(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each is said once, of the device that is claimed, and whatever is hard to see in a list is seen as well."""
    monkeypatch.setattr(journal, "RUN", tmp_path / "none")
    host.fake.vmd()
    drive = host.device("10000:01:00.0").sys_path
    host.disk(drive / "nvme/nvme0/nvme0n1", "259:0")
    host.mount("259:0", "/srv")
    plan = plan_claim("0000:00:0e.0")
    assert [(refusal.device, refusal.kind) for refusal in plan.refusals] == [("0000:00:0e.0", "mounted")]
    vmd, port = host.device("0000:00:0e.0"), host.device("10000:00:01.0")
    assert set(uses.in_use(list_devices())) == {vmd, host.device("10000:01:00.0")}
    assert uses.refusals(port) == ()


def test_what_only_a_look_at_the_device_shows_is_a_use_of_what_it_goes_with(host: Host) -> None:
    host.fake.vmd()
    (host.device("10000:01:00.0").sys_path / "net").mkdir()
    assert {device.name for device in uses.in_use(list_devices())} == {"0000:00:0e.0", "10000:01:00.0"}
