"""Watching devices, with events made for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import CliRunner

from pyiommufd import find_device
from pyiommufd.cli import watch as module
from pyiommufd.cli.group import cli
from pyiommufd.host.discovery.monitor import DeviceEvent
from tests.fake_sysfs import FakeSysfs


class FakeMonitor:
    """In place of the kernel's events."""

    events: tuple[DeviceEvent, ...] = ()
    asked: Any = None

    def __init__(self, subsystems: Any = None) -> None:
        type(self).asked = subsystems
        self._left = list(self.events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def poll(self, seconds: float | None = None) -> DeviceEvent | None:
        if self._left:
            return self._left.pop(0)
        if seconds is None:
            raise KeyboardInterrupt
        return None


@pytest.fixture
def events(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> type[FakeMonitor]:
    fake.pci("0000:00:01.0", group=1, driver="vfio-pci", cdev=0)
    device = find_device("00:01.0")
    monkeypatch.setattr(module, "Monitor", FakeMonitor)
    FakeMonitor.events = (
        DeviceEvent("bind", "pci", "0000:00:01.0", device.sys_path, device),
        DeviceEvent("add", "vfio-dev", "vfio0", device.sys_path / "vfio-dev/vfio0", device),
        DeviceEvent("remove", "pci", "0000:00:09.0", Path("/sys/devices/x"), None),
    )
    return FakeMonitor


def test_text_until_interrupted(events: type[FakeMonitor]) -> None:
    result = CliRunner().invoke(cli, ["watch"])
    assert result.exit_code == 0
    bind, add, remove = (line.split()[1:] for line in result.stdout.splitlines())
    assert bind == ["bind", "pci", "0000:00:01.0", "vfio-pci", "group", "1"]
    assert add == ["add", "vfio-dev", "vfio0", "(0000:00:01.0)", "vfio-pci", "group", "1"]
    assert remove == ["remove", "pci", "0000:00:09.0"]
    assert events.asked is None


def test_json_by_lines(events: type[FakeMonitor]) -> None:
    result = CliRunner().invoke(cli, ["watch", "--json", "--timeout", "1", "--bus", "pci"])
    assert result.exit_code == 0
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["action"] for record in records] == ["bind", "add", "remove"]
    assert [record["device"] and record["device"]["standing"] for record in records] == ["vfio", "vfio", None]
    assert all(set(record) == set(module._KEYS) for record in records)
    assert events.asked == ("pci",)


def test_count(events: type[FakeMonitor]) -> None:
    result = CliRunner().invoke(cli, ["watch", "--count", "2"])
    assert len(result.stdout.splitlines()) == 2
    assert CliRunner().invoke(cli, ["watch", "--count", "0"]).exit_code == 2
