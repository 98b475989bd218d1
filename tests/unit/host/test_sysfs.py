"""Reading and writing attributes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pyiommufd.host import sysfs
from pyiommufd.host import worker as helper
from tests.patience import patience, until


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
    for write in (sysfs.write, lambda path, text: sysfs.write_with_limit(path, text, 30)):
        with pytest.raises(FileNotFoundError) as caught:
            write(tmp_path / "none", "x")
        assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tmp_path / "none"))
        with pytest.raises(OSError, match="No space left"):
            write(Path("/dev/full"), "x")


def test_write_from_another_process(tmp_path: Path) -> None:
    path = tmp_path / "attribute"
    path.touch()
    sysfs.write_with_limit(path, "ü", 30)
    assert path.read_text() == "ü"


def test_write_that_blocks_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """A pipe that is full blocks its writer as an unbind does."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="still uses"):
        sysfs.write_with_limit(path, "x", 0.3)
    assert time.monotonic() - start >= 0.3
    # It is not left behind either, once it can end.
    assert helper._abandoned.pop().wait(patience()) == -signal.SIGKILL
    os.close(reader)
    os.close(writer)


def test_writer_whose_process_is_gone_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process had asked for must not happen after its claim has been recovered."""
    path = tmp_path / "attribute"
    path.touch()
    # A Python that takes its time to start, as on a busy machine: until it is told to go on.
    slow = tmp_path / "python"
    wait = "touch started\nwhile ! [ -e go ]; do sleep 0.01; done"
    slow.write_text(f'#!/bin/sh\n{wait}\n"{sys.executable}" "$@"\necho "$?" > ended\n')
    slow.chmod(0o755)
    child = os.fork()
    if not child:
        monkeypatch.setattr(sys, "executable", str(slow))
        os.chdir(tmp_path)
        sysfs.write_with_limit(path, "late", 30)
        os._exit(0)
    until((tmp_path / "started").exists)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (tmp_path / "go").touch()
    until((tmp_path / "ended").exists)
    assert path.read_text() == ""
