"""Opening an iommufd where there is none: what is said about it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyiommufd import IOMMUFD, DeviceFile, DeviceNotFoundError, NotFoundError


def test_missing_node(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        IOMMUFD(tmp_path / "iommu")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.causes
    assert all(cause.fix for cause in caught.value.causes)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (tmp_path / "file", "/dev/null"):
        with pytest.raises(ValueError, match="is not an iommufd"):
            IOMMUFD(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_other_fds_stay_the_callers() -> None:
    reader, writer = os.pipe()
    for fd in (reader, writer):
        with pytest.raises(ValueError, match="iommufd"):
            IOMMUFD.from_fd(fd)
        with pytest.raises(ValueError, match="vfio cdev"):
            DeviceFile.from_fd(fd)
        os.close(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            IOMMUFD.from_fd(fd)
    with pytest.raises(TypeError):
        IOMMUFD.from_fd("3")  # type: ignore[arg-type]


def test_no_device() -> None:
    with pytest.raises(DeviceNotFoundError, match="ffff:ff:1f"):
        DeviceFile("ffff:ff:1f.7")
    with pytest.raises(TypeError):
        DeviceFile(3)  # type: ignore[arg-type]
