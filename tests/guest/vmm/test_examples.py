"""The examples of handing over run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyiommufd import HostDevice
from tests.guest.vmm.conftest import named


@pytest.mark.long
def test_passthrough_to_qemu(alone: HostDevice, tmp_path: Path) -> None:
    program = named(tmp_path, "qemu-system-x86_64")
    command = [
        sys.executable,
        "examples/qemu_passthrough.py",
        alone.name,
        str(program),
        "dma",
        "exit=3",
        "--",
        "-m",
        "2G",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["ids iommufd0 vfio0", f"bound {alone.name}", "dma moved"], done.stderr
    assert done.returncode == 3
