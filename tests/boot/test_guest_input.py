"""Standard input of commands in a guest, from Python and by `pyiommufd guest`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd.testing import Guest
from tests.patience import patience
from tests.terminal import end_of, on_terminal

pytestmark = pytest.mark.boots

GUEST = [sys.executable, "-m", "pyiommufd", "guest"]
MIB = 1 << 20


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(devices=[]) as guest:
        yield guest


def passing_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "pyiommufd-input"]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    """A file of 4 MiB whose bytes take all values."""
    path = tmp_path / "source"
    path.write_bytes(bytes(range(256)) * (4 * MIB // 256))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_input_comes_as_it_is_and_ends(guest: Guest, source: int, tmp_path: Path) -> None:
    assert guest.run(["cat"], stdin=source, timeout=patience()).stdout == (tmp_path / "source").read_bytes()
    assert passing_threads() == []


def test_input_waits_for_a_command_that_does_not_read(guest: Guest, source: int, tmp_path: Path) -> None:
    """What it has not read is not taken from the source, but for what a pipe holds; meanwhile another's is."""
    script = "head -c 1 >/tmp/one; until [ -e /tmp/go ]; do sleep 0.1; done; wc -c"
    results: list[bytes] = []
    thread = threading.Thread(target=lambda: results.append(guest.run(["sh", "-c", script], stdin=source).stdout))
    thread.start()
    try:
        with (tmp_path / "source").open("rb") as other:
            assert guest.run(["wc", "-c"], stdin=other, timeout=patience()).stdout == b"%d\n" % (4 * MIB)
        assert os.lseek(source, 0, os.SEEK_CUR) <= MIB // 2
    finally:
        guest.put(b"", "/tmp/go")  # noqa: S108 - in the guest
        thread.join(patience())
    assert results == [b"%d\n" % (4 * MIB - 1)]


def test_command_that_leaves_its_input_alone(guest: Guest, source: int) -> None:
    """It neither waits for what nobody writes, nor loses its exit status where it closes its input."""
    reader, writer = os.pipe()
    try:
        assert guest.run(["sh", "-c", "exit 3"], stdin=reader, timeout=patience()).returncode == 3
        assert passing_threads() == []
    finally:
        os.close(reader)
        os.close(writer)
    assert guest.run(["sh", "-c", "exec <&-; echo on; exit 4"], stdin=source, timeout=patience()).returncode == 4
    assert os.lseek(source, 0, os.SEEK_CUR) <= MIB // 2


def test_input_that_cannot_be_read(guest: Guest, tmp_path: Path) -> None:
    """A folder is none; what is open for writing only, as nohup has it, is empty."""
    with pytest.raises(ValueError, match="a terminal as stdin"):
        guest.run(["cat"], terminal=True)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Inappropriate ioctl"):
            guest.run(["cat"], stdin=folder, terminal=True)
        with pytest.raises(IsADirectoryError, match="standard input"):
            guest.run(["cat"], stdin=folder, timeout=patience())
    finally:
        os.close(folder)
    with open(os.devnull, "wb") as null:
        assert guest.run(["wc", "-c"], stdin=null, timeout=patience()).stdout == b"0\n"


def test_broken_pipe_ends_a_command_in_silence(guest: Guest) -> None:
    """As everywhere: Python, which starts the commands in the guest, ignores SIGPIPE, and they do not."""
    done = guest.run(["sh", "-c", "yes | head -n 1"])
    assert (done.stdout, done.stderr) == (b"y\n", b"")


def test_pipe_of_the_shell() -> None:
    done = subprocess.run(
        [*GUEST, "--", "cat"], input=b"hello\0\xff\n", capture_output=True, timeout=patience(), check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\0\xff\n", b"")


def test_closed_standard_input_is_empty() -> None:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", *GUEST, "--", "sh", "-c", "wc -c; exit 5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (5, "0\n", "")


def test_shell_in_the_guest() -> None:
    """On a terminal and without a command; jobs, sizes and Ctrl-C are the guest's, the exit status is the shell's."""
    terminal = on_terminal("sh", "-c", 'stty -g; "$@"; status=$?; stty -g; exit $status', "sh", *GUEST)
    modes = terminal.readline()
    terminal.expect_exact("a shell in the guest")
    terminal.sendline("echo $((6 * 7))0; tty; stty size")  # typed while the guest's shell is not there yet
    terminal.expect_exact("420\r\n/dev/pts/0\r\n24 80\r\n")
    terminal.setwinsize(40, 132)
    terminal.sendline("until [ \"$(stty size)\" = '40 132' ]; do sleep 0.1; done; echo si''zed $COLUMNS")
    terminal.expect_exact("sized")
    terminal.sendline("cat")
    terminal.sendline("a line")
    terminal.expect_exact("a line\r\na line\r\n")  # the terminal's echo, and cat's
    terminal.sendintr()
    terminal.sendline("echo in''terrupted $?")
    terminal.expect_exact("interrupted 130")
    terminal.sendline("sh -c 'echo ru''ns; sleep 600'")
    terminal.expect_exact("runs")
    terminal.sendcontrol("z")
    terminal.expect_exact("Stopped")
    terminal.sendline("kill %1; jobs; exit 7")
    assert end_of(terminal) == 7
    assert str(terminal.before).endswith(modes)  # and no "results in" before it: the folder is gone
    assert "results in" not in str(terminal.before)


def test_terminal_as_input_of_a_command() -> None:
    """It is passed on line by line, and not at all while the command is in the background."""
    terminal = on_terminal("bash", "--norc", "--noprofile", environment={"PS1": "here# "})
    terminal.expect_exact("here# ")
    terminal.sendline(f"{shlex.join([*GUEST, '--'])} sh -c 'echo rea''dy; read line; echo got $line' &")
    terminal.expect_exact("ready")
    for command, said in (("echo on''e", "one"), ("echo tw''o", "two"), ("jobs", "Running")):
        terminal.sendline(command)  # for the shell, which has the terminal
        terminal.expect_exact(said)
    terminal.sendline("fg")
    terminal.sendline("a line")
    terminal.expect_exact("got a line\r\n")
    terminal.expect_exact("here# ")
    terminal.sendline("exit 6")
    assert end_of(terminal) == 6
