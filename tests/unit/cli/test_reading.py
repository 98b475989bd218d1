"""The reading commands, on machines made for it: text, JSON by documented keys, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pyiommufd.cli import output
from pyiommufd.cli.arguments import DeviceArgument
from pyiommufd.cli.group import COMMANDS, cli
from pyiommufd.cli.output import ReadingCommand
from pyiommufd.host import holders as holders_module
from pyiommufd.host.discovery import pci_ids
from pyiommufd.host.holders import Holder
from tests.fake_sysfs import FakeSysfs
from tests.patience import until


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == status, result.output
    assert "\x1b" not in result.output  # no colours off a terminal
    return result


def run_json(*arguments: str, status: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", status=status).stdout)


def documented(command: str) -> dict[str, str]:
    with click.Context(cli) as context:
        found = cli.get_command(context, command)
    assert isinstance(found, ReadingCommand)
    return found.json_keys


def keys_of(value: Any, at: str = "") -> set[str]:
    """The keys of a JSON value, as they are documented: those of objects in arrays without numbers."""
    if isinstance(value, list):
        return {key for each in value for key in keys_of(each, at)}
    if isinstance(value, dict):
        return {at + key for key in value} | {name for key in value for name in keys_of(value[key], f"{at}{key}.")}
    return set()


@pytest.fixture
def machine(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    """A bridge with a group of two behind it, a device on vfio, and one that no IOMMU covers."""
    fake.pci("0000:00:01.0", group=1, driver="pcieport", class_code=0x060400)
    fake.pci("0000:01:00.0", parent="0000:00:01.0", group=2, driver="nvme", iommu="dmar0", numa_node="0")
    fake.pci("0000:01:00.1", parent="0000:00:01.0", group=2, ids=(0x1234, 0x0001), iommu="dmar0")
    fake.pci("0000:00:02.0", group=3, driver="vfio-pci", cdev=0, ids=(0x8086, 0x10FB), reset_method="flr pm")
    fake.pci("0000:00:03.0", driver="e1000e", ids=(0x8086, 0x0001))
    names = pci_ids.PciIds(b"1234  Makers\n\t11e8  Teacher\n8086  Others\n")
    monkeypatch.setattr("pyiommufd.cli.records.pci_ids", lambda: names)
    fake.interface(fake.root / "devices/pci0000:00/0000:00:03.0", "eth0")
    fake.disk(fake.root / "devices/pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme0/nvme0n1", "511:0")
    return fake


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["00:01.0", "00:02.0", "00:03.0", "01:00.0", "01:00.1"]),
        (["--driver", "nvme"], ["01:00.0"]),
        (["--driver", "nvme", "--driver", "none"], ["01:00.0", "01:00.1"]),
        (["--group", "2"], ["01:00.0", "01:00.1"]),
        (["--group", "2", "--driver", "none"], ["01:00.1"]),
        (["--group", "nvme0n1"], ["01:00.0", "01:00.1"]),
        (["--standing", "claimable"], ["01:00.0", "01:00.1"]),
        (["--standing", "vfio", "--standing", "no-group"], ["00:02.0", "00:03.0"]),
        (["1234:11e8"], ["00:01.0", "01:00.0"]),
        (["8086:"], ["00:02.0", "00:03.0"]),
        ([":0001"], ["00:03.0", "01:00.1"]),
        (["8086:10FB", "1234:0001"], ["00:02.0", "01:00.1"]),
        (["--bus", "mdev"], []),
    ],
)
def test_list_chooses(machine: FakeSysfs, options: list[str], names: list[str]) -> None:
    assert [device["name"][5:] for device in run_json("list", *options)] == names
    lines = run("list", *options).stdout.splitlines()
    assert [line.split()[0][5:] for line in lines[1:]] == names


def test_list_shows(machine: FakeSysfs) -> None:
    head, _, vfio, outside, *_ = run("list").stdout.splitlines()
    assert head.split() == ["DEVICE", "ID", "DRIVER", "GROUP", "IOMMU", "STANDING", "NAME"]
    words = "Others Ethernet controller"
    assert vfio.split(None, 6) == ["0000:00:02.0", "8086:10fb", "vfio-pci", "3", "-", "vfio", words]
    assert outside.split(None, 6) == ["0000:00:03.0", "8086:0001", "e1000e", "-", "-", "no-group", f"eth0: {words}"]
    assert run_json("list", "--driver", "nvme") == [
        {
            "name": "0000:01:00.0",
            "subsystem": "pci",
            "vendor_id": "1234",
            "device_id": "11e8",
            "class_code": "020000",
            "description": "Makers Teacher",
            "interfaces": [],
            "blocks": ["nvme0n1"],
            "driver": "nvme",
            "group": 2,
            "iommu": "dmar0",
            "numa_node": 0,
            "vfio_cdev": None,
            "standing": "claimable",
            "physical_function": None,
        }
    ]


def test_every_command_names_interfaces_and_disks(machine: FakeSysfs) -> None:
    assert "no-group  eth0: Others Ethernet controller\n" in run("topology").stdout
    assert "blocks the group  nvme0n1: Makers Teacher\n" in run("groups", "2").stdout
    lines = run("show", "eth0").stdout.splitlines()
    assert "interfaces  eth0" in [" ".join(line.split(None, 1)).replace(" ", "  ") for line in lines]
    assert "0000:01:00.0 (nvme0n1): nvme -> vfio-pci  (companion)\n" in run("plan", "01:00.1", status=1).stdout
    assert "0000:01:00.0  nvme  blocks the group  nvme0n1" in run("show", "01:00.1").stdout
    for command, at in (("topology", ("devices",)), ("groups", (0, "devices")), ("show", ("iommu_group", "devices"))):
        shown = run_json(command, *{"groups": ["2"], "show": ["nvme0n1"]}.get(command, []))
        for key in at:
            shown = shown[key]
        found = {device["name"]: (device["interfaces"], device["blocks"]) for device in shown}
        assert found["0000:01:00.0"] == ([], ["nvme0n1"])
        assert found.get("0000:00:03.0", (["eth0"], [])) == (["eth0"], [])


@pytest.mark.parametrize("command", [["list"], ["groups"], ["topology"], ["show", "eth0"], ["show", "01:00.1"]])
@pytest.mark.parametrize("columns", [80, 100])
def test_lines_fit_a_terminal(
    machine: FakeSysfs, monkeypatch: pytest.MonkeyPatch, command: list[str], columns: int
) -> None:
    names = pci_ids.PciIds(b"1234  " + b"A very long name of a company " * 6 + b"\n")
    monkeypatch.setattr("pyiommufd.cli.records.pci_ids", lambda: names)
    monkeypatch.setattr("pyiommufd.cli.show.pci_ids", lambda: names)
    whole = run(*command).stdout
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(output, "_is_terminal", lambda: True)
    shown = run(*command).stdout
    assert max(map(len, whole.splitlines())) > columns
    assert max(map(len, shown.splitlines())) <= columns
    # No word but those of descriptions is lost.
    assert set(shown.replace("…", " … ").split()) >= {
        word for line in whole.splitlines() for word in line.split("A very long")[0].split()
    } - {"Others", "Ethernet", "controller"}


def test_show_indents_what_goes_on(machine: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(output, "_is_terminal", lambda: True)
    lines = run("show", "eth0").stdout.splitlines()
    label = lines[0].index("0000:")
    assert all(line[:label].strip() or line.startswith(" " * label) for line in lines)
    assert any(line.startswith(" " * (label + 2)) for line in lines)


@pytest.mark.parametrize("text", ["8086", "8086:10fbx", "x:1", "8086:10fb:1"])
def test_list_refuses_what_is_no_id(text: str) -> None:
    assert "vendor:device" in run("list", text, status=2).output


def test_groups(machine: FakeSysfs) -> None:
    text = run("groups").stdout
    assert "group 2  2 devices, DMA-FQ, not viable" in text
    assert "0000:01:00.0  1234:11e8  nvme  claimable  blocks the group" in text
    assert "reserved 0xfee00000..0xfeefffff (msi)" in text
    assert [group["id"] for group in run_json("groups")] == [1, 2, 3]
    assert [group["id"] for group in run_json("groups", "--shared")] == [2]
    assert [group["id"] for group in run_json("groups", "3", "1")] == [3, 1]
    (group,) = run_json("groups", "2")
    assert (group["viable"], group["blockers"]) == (False, ["0000:01:00.0"])
    assert "no IOMMU group 99" in run("groups", "99", status=1).output


def test_groups_of_devices(machine: FakeSysfs) -> None:
    assert [group["id"] for group in run_json("groups", "nvme0n1", "00:02.0", "2", "01:00.1")] == [2, 3]
    for command in (["groups", "eth0"], ["list", "--group", "eth0"]):
        assert (
            "0000:00:03.0 is in no IOMMU group: no IOMMU: this machine's one does not" in run(*command, status=1).stderr
        )
    assert "there is no device 'eth1'; " in run("groups", "eth1", status=1).stderr


def test_list_of_a_device_names_show(machine: FakeSysfs) -> None:
    for name in ("eth0", "00:03.0"):
        assert f":10fb; for 0000:00:03.0: pyiommufd show {name}\n" in run("list", name, status=2).stderr
    assert "pyiommufd show" not in run("list", "eth1", status=2).stderr


@pytest.mark.parametrize("command", ["show", "holders", "plan", "claim", "rebind", "vfs", "run"])
def test_without_a_device(command: str) -> None:
    assert "pyiommufd list shows the devices." in run(command, status=2).stderr


def test_groups_without_an_iommu(fake: FakeSysfs) -> None:
    fake.pci("0000:00:01.0")
    result = run("groups", "--json", status=3)
    assert json.loads(result.stdout) == []
    assert "no IOMMU: " in result.stderr


def test_show(machine: FakeSysfs) -> None:
    lines = {line.split("  ")[0]: line for line in run("show", "00:02.0").stdout.splitlines()}
    assert lines["reset"].split() == ["reset", "flr", "pm"]
    assert "/dev/vfio/devices/vfio0" in lines["vfio node"]
    assert "3, DMA-FQ, viable" in lines["group"]
    text = run("show", "01:00.1").stdout
    assert "0000:01:00.0  nvme  blocks the group" in text
    assert "0000:01:00.0: nvme -> vfio-pci  (companion)" in text
    shown = run_json("show", "01:00.1")
    assert shown["plan"]["companions"] == ["0000:01:00.0"]
    assert {move["device"]: (move["before"], move["after"]) for move in shown["plan"]["moves"]} == {
        "0000:01:00.0": ("nvme", "vfio-pci"),
        "0000:01:00.1": (None, "vfio-pci"),
    }
    refused = run_json("show", "00:03.0")["plan"]["refusals"]
    assert {refusal["kind"] for refusal in refused} == {"noiommu"}
    assert "no device" in run("show", "09:00.0", status=1).output


def test_virtual_functions_are_shown_with_their_physical_one(machine: FakeSysfs) -> None:
    physical = machine.pci("0000:02:00.0", driver="igb", sriov_totalvfs="7")
    for number in range(2):
        function = machine.pci(f"0000:02:10.{number}")
        machine.link(f"{physical.relative_to(machine.root)}/virtfn{number}", function)
        machine.link(f"{function.relative_to(machine.root)}/physfn", physical)
    names = ["0000:02:10.0", "0000:02:10.1"]
    found = {device["name"]: device["physical_function"] for device in run_json("list")}
    assert [name for name in found if found[name]] == names
    assert {found[name] for name in names} == {"0000:02:00.0"}
    assert run_json("show", names[1])["physical_function"] == "0000:02:00.0"
    assert run_json("show", names[1])["virtual_functions"] is None
    assert run_json("show", "02:00.0")["virtual_functions"] == {"now": 2, "most": 7, "names": names}
    lines = [" ".join(line.split()) for line in run("show", "02:00.0").stdout.splitlines()]
    at = lines.index("virtual functions 2 of 7")
    assert lines[at + 1 : at + 3] == names
    assert "physical function 0000:02:00.0" in [
        " ".join(line.split()) for line in run("show", names[0]).stdout.splitlines()
    ]


def test_holders(machine: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Holder(4711, "qemu", "/dev/vfio/devices/vfio0", "fd 20")
    monkeypatch.setattr("pyiommufd.cli.holders.find_holders", lambda *devices: (held,) * len(devices))
    assert run("holders", "00:02.0").stdout.splitlines()[1].split() == ["4711", "qemu", held.node, "fd", "20"]
    assert run_json("holders", "00:02.0") == [{"pid": 4711, "command": "qemu", "node": held.node, "how": "fd 20"}]
    assert len(run_json("holders", "01:00.0", "--group")) == 2
    monkeypatch.setattr("pyiommufd.cli.holders.find_holders", holders_module.holders)
    assert run("holders", "01:00.1").stdout == ""
    assert run_json("holders", "01:00.1") == []


def test_check(machine: FakeSysfs) -> None:
    text = run("check", status=3).stdout
    assert "not ready for passthrough" in text
    assert "fix: " in text
    shown = run_json("check", status=3)
    assert shown["ready"] is False
    assert {finding["check"] for finding in shown["findings"]} >= {"iommu", "iommufd", "reset", "mixed-group"}


def test_summaries_of_check_fit_a_terminal(machine: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyiommufd.host.checks.platform_checks.visibility_note", lambda: "a word " * 30)
    monkeypatch.setenv("COLUMNS", "80")
    whole = run("check", status=3).stdout
    monkeypatch.setattr(output, "_is_terminal", lambda: True)
    shown = run("check", status=3).stdout
    assert shown.split() == whole.split()
    first, *others = [line for line in shown.splitlines() if "a word" in line]
    margin = first.index("a word")
    assert first.split()[:2] == ["warning", "namespaces"]
    assert len(others) > 2
    assert all(line.startswith(" " * margin) and len(line) <= 80 for line in others)
    assert len(first) <= 80


def test_explain(machine: FakeSysfs) -> None:
    machine.file("class/misc/iommu/dev", "10:127")
    text = run("explain", "bind", "eperm", "01:00.1").stdout
    assert text.splitlines()[:2] == [
        "VFIO_DEVICE_BIND_IOMMUFD on 0000:01:00.1: EPERM (Operation not permitted)",
        "  1. 0000:01:00.0 is in the same IOMMU group and on the host driver nvme",
    ]
    assert "fix: claim the group" in text
    assert "  not the reason now: the group is owned by another iommufd\n" in text
    shown = run_json("explain", "bind", "eperm", "01:00.1")
    assert shown["ruled_out"][0] == "the group is owned by another iommufd"
    alone = run("explain", "sysfs-bind", "ebusy", "00:02.0").stdout.splitlines()
    assert alone[1] == "  none of the known reasons holds now"
    assert alone[2].startswith("  not the reason now: ")
    shown = run_json("explain", "IOMMU_IOAS_MAP", "17")
    assert (shown["request"], shown["errno"], shown["name"], shown["device"]) == ("IOMMU_IOAS_MAP", 17, "EEXIST", None)
    assert "no reason" in run("explain", "bind", "EXDEV").stdout
    assert "ambiguous" in run("explain", "hwpt", "EINVAL", status=2).output
    assert "not an errno" in run("explain", "bind", "EWHAT", status=2).output
    assert "no device" in run("explain", "bind", "EPERM", "09:00.0", status=1).output


READING: dict[str, list[list[str]]] = {
    "list": [[]],
    "groups": [[]],
    "show": [["01:00.0"], ["00:02.0"], ["00:03.0"]],
    "check": [[]],
    "holders": [["00:02.0"]],
    "topology": [[]],
    "explain": [["bind", "EPERM", "01:00.0"]],
}
ELSEWHERE = {"watch", "caps", "plan", "vfs", "claims"}
"""A stream of objects, what takes a kernel that has iommufd, and what goes with changes: tested on their own."""


@pytest.mark.parametrize("command", READING)
def test_keys_are_those_documented(machine: FakeSysfs, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    held = Holder(4711, "qemu", "/dev/vfio/devices/vfio0", "fd 20")
    monkeypatch.setattr("pyiommufd.cli.holders.find_holders", lambda *devices: (held,))
    monkeypatch.setattr("pyiommufd.host.overview.details.holders_among", lambda processes, devices: (held,))
    monkeypatch.setattr("pyiommufd.host.overview.topology.holders", lambda *devices: (held,))
    told = documented(command)
    assert all(told.values())
    printed: set[str] = set()
    for arguments in READING[command]:
        printed |= keys_of(run_json(command, *arguments, status=3 if command == "check" else 0))
    # What is an object or array in words of its own is documented as a whole.
    whole = {key for key in told if not any(other.startswith(f"{key}.") for other in told)}
    assert {key for key in printed if not any(key.startswith(f"{one}.") for one in whole)} <= set(told)
    assert {key for key in told if key.count(".") == 0} <= printed


def test_every_reading_command_is_here() -> None:
    with click.Context(cli) as context:
        commands = {name: cli.get_command(context, name) for name in COMMANDS}
    assert {name for name, command in commands.items() if isinstance(command, ReadingCommand)} == set(
        READING
    ) | ELSEWHERE
    for name in {*READING, *ELSEWHERE}:
        assert "JSON:" in run(name, "--help").output


def test_words_to_those_who_wait(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output, "_AFTER", 0.01)
    with output.show_progress("reading"):
        pass
    assert capsys.readouterr().err == ""  # no terminal
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with output.show_progress("reading"):
        assert "reading …" in until(lambda: capsys.readouterr().err, "the words")


def test_help_says_how_a_device_is_named() -> None:
    with click.Context(cli) as context:
        commands = [cli.get_command(context, name) for name in COMMANDS]
    taking = [each for each in commands if each and any(isinstance(one, DeviceArgument) for one in each.params)]
    assert len(taking) >= 10
    for command in taking:
        assert "A PCI address (0000:02:01.0, 02:01.0)" in run(command.name or "", "--help").stdout
    assert run("man").stdout.count("A PCI address") == len(taking)


def test_no_colour_where_none_is_wanted(machine: FakeSysfs) -> None:
    coloured = CliRunner().invoke(cli, ["list"], color=True)
    assert "\x1b[36mvfio\x1b[0m" in coloured.output
    plain = CliRunner(env={"NO_COLOR": "1"}).invoke(cli, ["list"], color=True)
    assert plain.output == run("list").output


def test_path_of_a_device(machine: FakeSysfs) -> None:
    path: Path = machine.root / "bus/pci/devices/0000:00:02.0"
    assert run_json("show", str(path))["name"] == "0000:00:02.0"
