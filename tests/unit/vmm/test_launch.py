"""Programs that die with the process that started them, and run as they are told to."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyiommufd.vmm.launch import launch_command
from tests.patience import until

SAY = "import os, sys; sys.stdout.write(f'{os.getpid()}\\n'); sys.stdout.flush(); "

# Starts a program by launch_command, with the options of its command line, and waits for it.
PARENT = """
import json, subprocess, sys
from pyiommufd.vmm.launch import launch_command

options = json.loads(sys.argv[1])
sys.exit(subprocess.Popen(launch_command(sys.argv[2:], **options)).wait())
"""


def state_of(pid: int) -> str:
    """The process' state as in proc_pid_stat(5); empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.parametrize("user", [None, {"uid": 65534, "gid": 65534, "groups": []}])
def test_it_dies_with_its_parent(user: dict[str, object] | None) -> None:
    if user and os.geteuid() != 0:
        pytest.skip("a change of user takes root")
    program = ["/usr/bin/env", "sh", "-c", "echo $$; exec sleep 1000"]
    command = [sys.executable, "-c", PARENT, json.dumps({"user": user}), *program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert state_of(pid) in set("RSD")
        parent.kill()
    until(lambda: state_of(pid) in ("", "Z"), "the program ends")


def test_parent_that_is_gone_already() -> None:
    command = launch_command(["echo", "started"])
    command[4] = command[4].replace(str(os.getpid()), "1")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert "the process that starts it is gone" in done.stderr


def test_signals_are_as_told() -> None:
    """Python ignores SIGPIPE; a program that is started by Python is not to."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        command = launch_command(["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"], mask=[signal.SIGHUP])
        done = subprocess.run(command, capture_output=True, text=True, check=True, restore_signals=False)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    blocked, ignored = (int(line.split()[1], 16) for line in done.stdout.splitlines())
    assert blocked == 1 << (signal.SIGHUP - 1)
    assert not ignored & 1 << (signal.SIGPIPE - 1)


def test_locked_memory_is_limited() -> None:
    command = launch_command(["sh", "-c", "ulimit -Hl; ulimit -Sl"], memlock=1 << 20)
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if 0 <= hard < 1 << 20:
        pytest.skip("this process may lock less")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1024", "1024"]


def test_reason_goes_to_the_report(tmp_path: Path) -> None:
    (tmp_path / "program").write_text("no program\n")
    reader, writer = os.pipe()
    with open(reader) as report:
        command = launch_command([str(tmp_path / "program")], report=writer)
        with subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.PIPE) as process:
            os.close(writer)
            assert report.read() == f"{tmp_path / 'program'}: Permission denied"
            assert process.communicate()[1] == b""
    assert process.returncode == 125


def test_report_is_closed_where_it_runs() -> None:
    reader, writer = os.pipe()
    with (
        open(reader) as report,
        subprocess.Popen(launch_command(["cat"], report=writer), pass_fds=[writer], stdin=subprocess.PIPE) as process,
    ):
        os.close(writer)
        assert report.read() == ""
        assert process.poll() is None
    assert process.returncode == 0


def test_fds_that_a_process_was_started_with() -> None:
    code = "import os, sys; os.pipe(); from pyiommufd.vmm.vmm import inherited_fds; print(*inherited_fds())"
    reader, writer = os.pipe()
    try:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, pass_fds=[writer], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(writer)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []
    finally:
        os.close(reader)
        os.close(writer)
