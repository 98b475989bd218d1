"""A machine of one's own whose host does something with its devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_sysfs import FakeSysfs
from tests.unit.host.uses.host import Host


@pytest.fixture
def host(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(fake, monkeypatch)


@pytest.fixture
def nvme(host: Host) -> Path:
    """The disk of an NVMe controller at 0000:00:01.0, with the number 259:0."""
    controller = host.fake.pci("0000:00:01.0", driver="nvme", group=1, class_code=0x010802)
    host.fake.link("class/nvme/nvme0", controller / "nvme/nvme0")
    host.node(controller / "nvme/nvme0", "char", "241:0")
    host.fake.file(f"{host.at(controller)}/nvme/nvme0/subsysnqn", "nqn.x")
    return host.disk(controller / "nvme/nvme0/nvme0n1", "259:0")


@pytest.fixture
def card(host: Host) -> Path:
    """The folder of a network card at 0000:00:01.0."""
    return host.fake.pci("0000:00:01.0", driver="e1000e", group=1)
