"""Reading and writing attributes."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pyiommufd.host import sysfs


def test_read(tmp_path: Path) -> None:
    (tmp_path / "attribute").write_text(" value \n")
    (tmp_path / "link").symlink_to("../drivers/vfio-pci")
    assert sysfs.read(tmp_path / "attribute") == "value"
    assert sysfs.read(tmp_path / "none") is None
    assert sysfs.read(tmp_path) is None
    (tmp_path / "number").write_text("0x8086\n")
    assert sysfs.number(tmp_path / "number", 16) == 0x8086
    assert sysfs.number(tmp_path / "number") is sysfs.number(tmp_path / "none") is sysfs.number(tmp_path) is None
    assert sysfs.link_name(tmp_path / "link") == "vfio-pci"
    assert sysfs.link_name(tmp_path / "attribute") is None


def test_failing_write_names_the_attribute(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        sysfs.write(tmp_path / "none", "x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tmp_path / "none"))
    with pytest.raises(OSError, match="No space left"):
        sysfs.write(Path("/dev/full"), "x")
