"""Two mediated devices of the kernel's sample mtty: serial ports whose state can be saved and loaded."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyiommufd import IOMMUFD, Device
from pyiommufd.host.mdev import create_mdev, remove_mdev


@pytest.fixture(scope="session")
def serial_names() -> Iterator[tuple[str, str]]:
    modules = Path(os.environ.get("PYIOMMUFD_MODULES", ""))
    if not (modules / "mtty.ko").exists():
        pytest.skip("this guest's kernel has no sample driver whose devices know migration")
    for module in ("mdev", "mtty"):
        if not Path(f"/sys/module/{module}").exists():  # they stay: this kernel unloads none
            subprocess.run(["insmod", modules / f"{module}.ko"], check=True)
    first, second = create_mdev("mtty", "mtty-2").name, create_mdev("mtty", "mtty-2").name  # of two ports each
    yield first, second
    for name in (first, second):
        remove_mdev(name)


def data_fds() -> list[str]:
    """The migration data fds of this process."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = str(fd.readlink())
        except OSError:
            continue  # the fd of the listing itself
        if "mtty_mig" in target:
            found.append(fd.name)
    return found


@pytest.fixture
def data_files() -> Iterator[Callable[[], list[str]]]:
    """The open data fds; none are left when the devices are closed."""
    yield data_fds
    assert data_fds() == []


@pytest.fixture
def serial(data_files: object, serial_names: tuple[str, str], iommufd: IOMMUFD) -> Iterator[Device]:
    """One, in the state RUNNING, as are both: an mtty keeps its state when it is closed."""
    with iommufd.bind(serial_names[0]) as device:
        device.reset()
        yield device


@pytest.fixture
def other_serial(data_files: object, serial_names: tuple[str, str], iommufd: IOMMUFD) -> Iterator[Device]:
    with iommufd.bind(serial_names[1]) as device:
        device.reset()
        yield device
