"""Device nodes that are missing, forbidden, or open elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd import (
    IOMMUFD,
    AccessDeniedError,
    Claim,
    DeviceFile,
    HostDevice,
    IoctlError,
    NotFoundError,
)

NOBODY = 65534


def test_iommufd_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "iommu", tmp_path / "no" / "folder"):
        with pytest.raises(NotFoundError) as caught:
            IOMMUFD(path)
        assert caught.value.errno == errno.ENOENT
        # The kernel of this machine has it: what is missing is the node.
        assert f"there is no {path} here" in str(caught.value)
        assert "container" in caught.value.causes[0].fix


def test_node_of_a_driver_that_is_not_there(tmp_path: Path) -> None:
    node = tmp_path / "iommu"
    os.mknod(node, 0o600 | 0o020000, os.makedev(240, 77))  # of the local majors, used by nothing
    with pytest.raises(IoctlError) as caught:
        IOMMUFD(node)
    assert caught.value.errno in (errno.ENODEV, errno.ENXIO)
    assert str(node) in str(caught.value)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """With the rights of another user, capabilities included, in this process."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_nodes_that_may_not_be_opened(claimed: Claim, first: HostDevice, iommufd: IOMMUFD) -> None:
    with as_nobody():
        with pytest.raises(AccessDeniedError) as caught:
            IOMMUFD()
        # By name and not by snapshot, as a user would.
        with pytest.raises(AccessDeniedError) as node:
            iommufd.bind(first.name)
    cdev = first.refreshed().vfio_cdev
    for error, path in ((caught.value, "/dev/iommu"), (node.value, cdev)):
        assert error.errno == errno.EACCES
        assert f"user {NOBODY} may not open {path}" in str(error)
        assert "mode 0660, owner 0" in str(error) or "mode 0600, owner 0" in str(error)
        assert "udev" in error.causes[0].fix
    assert iommufd.objects == ()
    iommufd.bind(first).close()


def test_device_open_through_another_fd_here(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    here = DeviceFile(first)
    with iommufd.bind(first) as bound:
        # The node may be opened more than once; bound it can be through one alone.
        with pytest.raises(IoctlError) as caught:
            iommufd.bind(here)
        assert caught.value.errno == errno.EINVAL
        assert f"pid {os.getpid()}" in str(caught.value)
        assert f"fd {bound.fileno()}" in str(caught.value)
        assert here.fileno() >= 0
    device = iommufd.bind(here)
    assert here.closed
    device.close()


@pytest.mark.long
def test_device_bound_by_another_process(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    program = (
        "import sys\nfrom pyiommufd import IOMMUFD\nwith IOMMUFD() as iommufd:\n"
        "    iommufd.bind(sys.argv[1])\n    print('bound', flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, first.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "bound\n"
        with pytest.raises(IoctlError) as caught:
            iommufd.bind(first)
        assert f"pid {other.pid} " in str(caught.value)
        assert iommufd.objects == ()
        other.stdin.close()
        assert other.wait(600) == 0
    iommufd.bind(first).close()
