"""The kernel's sample drivers of mediated devices: mtty (serial ports), mdpy and mbochs (displays)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyiommufd import HostDevice
from pyiommufd.host.mdev import create_mdev, mdev_types, remove_mdev

Maker = Callable[[str, str], HostDevice]
"""Makes a device of a parent and a type, which is removed at the end of the test."""


@pytest.fixture(scope="session")
def sample_drivers() -> None:
    """The drivers, loaded: only a kernel that ``--build-kernel`` has made has them."""
    folder = os.environ.get("PYIOMMUFD_MODULES")
    if not folder or not (Path(folder) / "mtty.ko").exists():
        pytest.skip("this guest's kernel has no sample drivers of mediated devices")
    for name in ("mdev", "mtty", "mdpy", "mbochs"):
        if not Path("/sys/module", name).exists():
            subprocess.run(["insmod", f"{folder}/{name}.ko"], check=True)


@pytest.fixture
def make(sample_drivers: None) -> Iterator[Maker]:
    yield create_mdev
    for kind in mdev_types():
        for device in kind.devices:
            remove_mdev(device)
