"""The topology as text and picture."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyiommufd import find_device
from pyiommufd.cli.group import cli
from pyiommufd.cli.topology_dot import dot
from pyiommufd.host.discovery.pci_ids import PciIds
from pyiommufd.host.holders import Holder
from pyiommufd.host.overview import topology as topology_module
from pyiommufd.host.overview.topology import look_at_topology
from tests.fake_sysfs import FakeSysfs

NAMES = PciIds(b'1234  AT&T "quoted" \\ and so on, further than fits\n\t11e8  x\n')


@pytest.fixture
def machine(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    fake.pci("0000:00:01.0", group=5, driver="pcieport", class_code=0x060400, iommu="dmar0")
    fake.pci("0000:01:00.0", parent="0000:00:01.0", group=5, driver="vfio-pci", cdev=0, iommu="dmar0")
    fake.pci("0000:01:00.1", parent="0000:00:01.0", group=5, driver="snd_hda_intel", iommu="dmar0")
    fake.pci("0000:00:03.0")
    held = (
        Holder(7, "qemu", "/dev/vfio/devices/vfio0", "fd 3"),
        Holder(7, "qemu", "/dev/vfio/devices/vfio0", "mapping"),
        Holder(8, "old", "/dev/vfio/5", "fd 4"),
    )
    monkeypatch.setattr(topology_module, "holders", lambda *devices: held)
    return fake


def test_text(machine: FakeSysfs) -> None:
    result = CliRunner().invoke(cli, ["topology"])
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0] == "pci0000:00"
    assert lines[1].startswith("├── 0000:00:01.0  1234:11e8  [group 5]  pcieport  bridge")
    assert lines[2].startswith("│   ├── 0000:01:00.0  1234:11e8  [group 5]  vfio-pci  vfio  /dev/vfio/devices/vfio0")
    assert "held by pid 7 (qemu)" in lines[2]
    assert lines[-1] == (
        "group 5 (dmar0): a claim takes 0000:01:00.1 from snd_hda_intel; pid 8 (old) holds /dev/vfio/5 by fd 4"
    )


def test_each_device_is_described_once(machine: FakeSysfs) -> None:
    text = dot(look_at_topology(), NAMES)
    for name in ("0000:00:01.0", "0000:01:00.0", "0000:01:00.1", "0000:00:03.0"):
        assert text.count(f'"pci {name}" [') == 1
    assert text.count("subgraph cluster_") == 1
    assert text.count('\n  "pid 7" [') == 1
    assert text.count('-> "pid 7"') == 1
    assert '"pci 0000:00:01.0" -> "pci 0000:01:00.1";' in text
    assert 'AT&amp;T \\"quoted\\" \\\\ and' in text


def test_groups_say_what_a_claim_does(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    for slot, group in ((1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (6, 5)):
        fake.pci(f"0000:00:0{slot}.0", group=group, driver="e1000e")
    used = {find_device(f"00:0{slot}.0"): frozenset({"address"}) for slot in (2, 5)}
    monkeypatch.setattr("pyiommufd.host.uses.in_use", lambda devices: used)
    text = dot(look_at_topology(), NAMES)
    labels = [line.split("label=")[1].split("; ")[0] for line in text.splitlines() if "IOMMU group" in line]
    assert labels == [
        '"IOMMU group 1"',
        '"IOMMU group 2\\la claim is refused\\l"',
        '"IOMMU group 3\\la claim takes 2 devices\\l"',
        '"IOMMU group 5\\la claim takes 2 devices and is refused\\l"',
    ]


def test_boxes_name_interfaces_and_disks(machine: FakeSysfs) -> None:
    machine.interface(machine.root / "devices/pci0000:00/0000:00:03.0/virtio0", 'e"th0')
    assert 'label="0000:00:03.0 [1234:11e8]\\le\\"th0\\lAT&amp;T' in dot(look_at_topology(), NAMES)


@pytest.mark.skipif(shutil.which("dot") is None, reason="the program dot is not here (package graphviz)")
def test_picture(machine: FakeSysfs, tmp_path: Path) -> None:
    file = tmp_path / "topology.svg"
    result = CliRunner().invoke(cli, ["topology", "--svg", str(file)])
    assert (result.exit_code, result.output) == (0, "")
    text = file.read_text()
    for name in ("0000:00:01.0", "0000:01:00.0", "0000:01:00.1", "0000:00:03.0"):
        assert text.count(f">{name} [1234:11e8]<") == 1
    assert CliRunner().invoke(cli, ["topology", "--svg", str(tmp_path / "none/x.svg")]).exit_code == 1
    # Any description is one that graphviz can read.
    subprocess.run(["dot", "-Tplain"], input=dot(look_at_topology(), NAMES), text=True, check=True, capture_output=True)


def test_without_graphviz(machine: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["topology", "--svg", str(tmp_path / "x.svg")]
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(cli, arguments)
    assert (result.exit_code, "apt-get install graphviz" in result.stderr) == (3, True)
    monkeypatch.setitem(sys.modules, "graphviz", None)
    result = CliRunner().invoke(cli, arguments)
    assert (result.exit_code, "pip install" in result.stderr) == (3, True)


def test_description_needs_no_graphviz(machine: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "graphviz", None)
    result = CliRunner().invoke(cli, ["topology", "--dot"])
    assert result.exit_code == 0
    assert result.stdout.startswith("digraph topology {")
