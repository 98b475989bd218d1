"""Devices handed to a real QEMU, whose VM does DMA with them; and devices that are unplugged under their monitor."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd.testing import Edu, Guest, RootPort, SharedGroup, VirtioRng
from pyiommufd.testing.guest.initramfs import Archive
from pyiommufd.testing.provision.kernels import cache_folder, find_kernel
from pyiommufd.testing.provision.newer_qemu import FetchedQEMU, fetched_qemus
from tests.boot.hotplug import plug
from tests.patience import patience, until

pytestmark = pytest.mark.boots

HERE = Path(__file__).parent
STANDIN = "tests/guest/vmm/standin.py"
DEVICE = "0000:00:01.0"
MEMBER, NEIGHBOUR = "0000:02:01.0", "0000:02:02.0"  # of one group, the second on a driver of the host
COMMAND = ["python", "-m", "pyiommufd.cli"]
RUN = [*COMMAND, "run"]
SECONDS = 300.0  # an emulated machine in an emulated machine

# Whoever has a vfio device or an iommufd open.
HELD = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -E '/dev/(vfio|iommu)'"

# What is on record of claims.
RECORDS = ["find", "/run/pyiommufd", "-name", "*.json"]


@pytest.fixture(scope="module")
def newer() -> FetchedQEMU:
    """A QEMU that takes fds of devices."""
    fetched = fetched_qemus(cache_folder())
    if not fetched:
        pytest.skip("there is no newer QEMU in the cache: tests/run --all fetches one")
    return fetched[0]


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    folders = [find_kernel().image.parent, *(qemu.folder for qemu in fetched_qemus(cache_folder())[:1])]
    with Guest(devices=[Edu(), SharedGroup(Edu(), VirtioRng()), RootPort()], memory=2048, read_only=folders) as guest:
        yield guest


def initramfs(folder: Path) -> bytes:
    """The file system of the inner VM: one program."""
    program = folder / "init"
    command = ["cc", "-static", "-Os", "-Wall", "-Werror", "-Wno-unused-result", "-o"]
    subprocess.run([*command, str(program), str(HERE / "inner_edu.c")], check=True)
    archive = Archive()
    archive.character_device("/dev/console", 5, 1)
    archive.file("/init", program.read_bytes(), 0o755)
    for mount in ("/proc", "/sys"):
        archive.folder(mount)
    return archive.build()


def drivers(guest: Guest) -> str:
    """The drivers of the devices, and their overrides."""
    look = "basename $(readlink $name/driver || echo none); cat $name/driver_override"
    command = ["sh", "-c", f"cd /sys/bus/pci/devices; for name in {DEVICE} {MEMBER} {NEIGHBOUR}; do {look}; done"]
    return guest.run(command, check=True).stdout.decode()


def assert_given_back(guest: Guest, before: str) -> None:
    assert drivers(guest) == before
    assert guest.run(["sh", "-c", HELD]).stdout == b""
    assert guest.run(RECORDS).stdout == b""


def test_vm_in_qemu_does_dma(guest: Guest, newer: FetchedQEMU, tmp_path: Path) -> None:
    before = drivers(guest)
    guest.put(initramfs(tmp_path), "/tmp/initramfs")  # noqa: S108 - the guest's
    machine = ["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "128", "-nodefaults", "-display", "none"]
    boot = ["-no-reboot", "-kernel", str(find_kernel().image), "-initrd", "/tmp/initramfs"]  # noqa: S108
    # Not to the standard output: its other half, the standard input, ends at once.
    boot += ["-serial", "file:/tmp/serial"]
    append = ["-append", "console=ttyS0 loglevel=4 panic=-1 no_timer_check"]
    start = time.monotonic()
    command = [*RUN, DEVICE, "--", str(newer.program), *machine, *boot, *append]
    done = guest.run(command, timeout=patience(SECONDS))
    serial = guest.get("/tmp/serial").decode()  # noqa: S108
    print(f"{serial}\n{done.stderr.decode()}\nit took {time.monotonic() - start:.0f} s")
    assert done.returncode == 0
    (line,) = [line for line in serial.splitlines() if "arrived" in line]
    assert line.strip().endswith("id 010000ed, arrived: by DMA of the edu device")
    assert "-device vfio-pci,id=vfio0,fd=" in done.stderr.decode()
    assert_given_back(guest, before)


class Program:
    """A `pyiommufd run` in the guest."""

    def __init__(self, guest: Guest, *arguments: str) -> None:
        self.output = bytearray()
        self.errors = bytearray()
        self.status: int | None = None
        self._thread = threading.Thread(target=self._run, args=(guest, arguments))
        self._thread.start()

    def _run(self, guest: Guest, arguments: tuple[str, ...]) -> None:
        out, err = self.output.extend, self.errors.extend
        self.status = guest.run([*RUN, *arguments], timeout=patience(SECONDS), stdout=out, stderr=err).returncode

    def wait_for(self, text: str) -> str:
        """Wait until it or its monitor has said this; the rest of that line."""

        def said() -> str | None:
            ended = self.status is not None
            for line in (*self.output.decode().splitlines(True), *self.errors.decode().splitlines(True)):
                # Output comes in pieces, which end anywhere.
                if text in line and line.endswith("\n"):
                    return line
            assert not ended, self.errors.decode()
            return None

        return str(until(said, self.errors.decode, SECONDS)).partition(text)[2].strip()

    def end(self) -> int | None:
        self._thread.join()
        return self.status


@pytest.mark.parametrize(
    ("whom", "number", "status"), [("QEMU", "TERM", 0), ("QEMU", "KILL", 137), ("run", "INT", 0), ("run", "KILL", -9)]
)
def test_signal(guest: Guest, newer: FetchedQEMU, whom: str, number: str, status: int) -> None:
    """The group comes back, and its other member to work, however the two end."""
    before = drivers(guest)
    # Its monitor greets once it has its devices; the VM waits for ever to be started.
    machine = ["-machine", "q35", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-S"]
    path = f"/tmp/monitor-{whom}-{number}"  # noqa: S108
    monitor = ["-chardev", f"file,id=m,path={path}", "-mon", "m"]
    program = Program(guest, MEMBER, "--", str(newer.program), *machine, *monitor)
    until(lambda: "type 'help'" in guest.run(["cat", path]).stdout.decode() or program.status is not None)
    assert program.status is None, program.errors.decode()
    assert "virtio-pci" in before.split()
    assert "virtio-pci" not in drivers(guest).split()
    (pid,) = {holder["pid"] for holder in json.loads(guest.run([*COMMAND, "holders", MEMBER, "--json"]).stdout)}
    if whom == "run":
        pid = int(guest.run(["ps", "-o", "ppid=", "-p", str(pid)], check=True).stdout)
    guest.run(["kill", f"-{number}", str(pid)], check=True)
    assert program.end() == status, program.errors.decode()
    if (whom, number) == ("run", "KILL"):
        # QEMU has died with it.
        assert "virtio-pci" not in drivers(guest).split()
        assert NEIGHBOUR in guest.run([*COMMAND, "recover"], check=True).stdout.decode()
    assert_given_back(guest, before)
    assert len(guest.run(["head", "-c", "16", "/dev/hwrng"], check=True).stdout) == 16


@pytest.fixture
def plugged(guest: Guest) -> tuple[str, str]:
    """An edu device behind a port: QEMU's name, and its address in the guest."""
    return plug(guest)


@pytest.mark.parametrize("how", ["serves", "ignores"])
def test_hot_unplug(guest: Guest, plugged: tuple[str, str], how: str) -> None:
    """A monitor that lets go when it is asked to, and one that does so only by its end."""
    name, address = plugged
    program = Program(guest, address, "--", "python", STANDIN, "fds", *(["remove"] if how == "serves" else []), "wait")
    pid = program.wait_for("ready ")
    guest.unplug(name, timeout=patience() if how == "serves" else 0)
    assert f"pid {pid} (python" in program.wait_for(
        f"the host takes {address} from its vfio driver, and the kernel asks for its release: "
    )
    guest.run(["kill", "-TERM", pid], check=True)
    assert program.end() == 115, program.errors.decode()
    if how == "ignores":
        guest.monitor.wait_event("DEVICE_DELETED", patience(), device=name)
    assert f"{address} is gone" in program.errors.decode()
    assert guest.run(["sh", "-c", HELD]).stdout == b""
    assert guest.run(RECORDS).stdout == b""
