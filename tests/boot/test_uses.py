"""Devices that a host uses: the tests of tests/guest/host/test_uses.py, in a guest that has such devices."""

from __future__ import annotations

import sys

import pytest

from pyiommufd.testing import Guest, Nvme
from pyiommufd.testing.machine import DEFAULT_DEVICES, RawDevice

pytestmark = pytest.mark.boots


def test_devices_in_use() -> None:
    devices = [*DEFAULT_DEVICES, Nvme(size=64 << 20), RawDevice("e1000e")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/guest/host/test_uses.py"]
    with Guest(devices=devices) as guest:
        result = guest.run(command, timeout=900)
    output = result.stdout.decode()
    assert result.returncode == 0, output + result.stderr.decode()
    assert "skipped" not in output
