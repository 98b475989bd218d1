"""The look at all processes."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyiommufd import plan_claim
from pyiommufd.host import sysfs
from pyiommufd.host.uses import processes
from pyiommufd.host.uses.processes import look_at_processes
from tests.patience import until
from tests.unit.host.uses.host import Host

NULL = (stat.S_IFCHR, os.makedev(1, 3))

FIRST_THREAD_ENDS = """
import ctypes, sys, threading

threading.Thread(target=sys.stdin.read).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_process_whose_first_thread_has_ended() -> None:
    """Its own folder in /proc shows no files then, and its other threads have them open."""
    command = [sys.executable, "-c", FIRST_THREAD_ENDS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        folder = Path(f"/proc/{process.pid}")
        until(lambda: (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z")
        assert not list((folder / "fd").iterdir())
        found = look_at_processes(mappings=True)
        assert [(one.fd, one.path) for one in found.nodes[NULL] if one.pid == process.pid] == [("2", "/dev/null")]
        assert process.stdin is not None
        process.stdin.close()
    assert process.pid not in look_at_processes(mappings=False).commands


def test_process_that_ends_meanwhile_is_no_error(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.process(70, "ends", holds="/dev/null")
    host.process(71, "stays", holds="/dev/null")
    read = sysfs.read

    def end(path: Path | str) -> str | None:
        if path == f"{host.fake.proc}/70/comm":
            (host.fake.proc / "70").rename(host.fake.proc / "ended")
        return read(path)

    monkeypatch.setattr(sysfs, "read", end)
    found = look_at_processes(mappings=True)
    assert [one.pid for one in found.nodes[NULL]] == [71]
    assert not found.unseen


@pytest.mark.parametrize("free", [0, 1, 2])
def test_files_that_cannot_be_listed_are_unseen(host: Host, free: int) -> None:
    """As this process may open no more, or just the folder and not the list of it, which takes another."""
    host.process(70, "holder", holds="/dev/null")
    assert not look_at_processes(mappings=True).unseen
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    fds = [os.dup(0)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fds[0] + 30, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                fds.append(os.dup(0))
        for _ in range(free):
            os.close(fds.pop())
        found = look_at_processes(mappings=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in fds:
            os.close(fd)
    assert found.unseen or [one.pid for one in found.nodes[NULL]] == [70]
    assert bool(found.unseen) == (free < 2)


def test_plan_looks_once_at_each_process(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all devices, their uses and their holders together."""
    host.fake.pci("0000:00:01.0", driver="nvme", group=1)
    host.fake.pci("0000:00:01.1", driver="vfio-pci", cdev=0, group=1)
    host.fake.pci("0000:00:02.0", driver="vfio-pci", cdev=1, group=2)
    host.node(host.fake.root / "devices/pci0000:00/0000:00:01.0/nvme/nvme0", "char", "1:5")
    for number, node in enumerate(("1:3", "1:7")):
        host.fake.file(f"class/vfio-dev/vfio{number}/dev", node)
    host.process(70, "smartd", holds="/dev/zero")
    host.process(71, "qemu", holds="/dev/full")
    host.process(72, "other")
    looked_at = []

    def descriptors(process: str, *arguments: object, **options: object) -> object:
        looked_at.append(process)
        return look(process, *arguments, **options)  # type: ignore[arg-type]

    look = processes.descriptors
    monkeypatch.setattr(processes, "descriptors", descriptors)
    found = plan_claim(["0000:00:01.0", "0000:00:02.0"]).refusals
    assert looked_at == ["1", "70", "71", "72"]
    assert [(one.device, one.reason) for one in found if one.kind == "held"] == [
        ("0000:00:01.0", "/dev/nvme0 is held open by pid 70 (smartd)"),
        ("0000:00:02.0", "pid 71 (qemu) holds /dev/vfio/devices/vfio1 by fd 3"),
    ]
