"""The tests of tests/guest/devices, in guests that have those devices; and devices that go while they are in use."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pyiommufd.testing import (
    E1000e,
    Edu,
    Guest,
    GuestDevice,
    GuestTimeoutError,
    Igb,
    Ivshmem,
    Nvme,
    RootPort,
    SharedGroup,
    VirtioRng,
    Xhci,
)
from pyiommufd.testing.provision.kernels import cache_folder
from pyiommufd.testing.provision.newer_qemu import fetched_qemus
from tests.boot.hotplug import plug
from tests.guest_pytest import ENVIRONMENT, PYTEST
from tests.patience import patience, until

pytestmark = pytest.mark.boots

SERIAL = "pyiommufd-7"
LIMIT = 5.0
"""Seconds within which a device that is held goes."""

HOLD = """
import sys, time
from pyiommufd import IOMMUFD, DMABuffer, find_device, plan_claim, recover

recover()  # of the test before: its device has gone, and this one has its place
claim = plan_claim(find_device(sys.argv[1])).apply()
iommufd = IOMMUFD()
device = iommufd.bind(claim.devices[0])
ioas = iommufd.alloc_ioas()
device.attach(ioas)
buffer = DMABuffer(1 << 20)
mapping = ioas.map(buffer, iova=0x100000)
window = device.region(0).map()
(vector,) = device.interrupts.msi.enable()
if sys.argv[2] == "serves":
    device.watch_removal()
print("holds", flush=True)
while not device.closed:
    time.sleep(0.05)
print("released", window.closed, vector.closed, flush=True)
iommufd.close()
buffer.close()
"""

HOLDERS = """
import sys
from pyiommufd import find_device
from pyiommufd.host.holders import holders

for holder in holders(find_device(sys.argv[1])):
    print(holder)
"""


def run_tests(guest: Guest, *names: str) -> str:
    """Run test files of tests/guest/devices, or with a path: all tests have to pass, and none may be skipped."""
    files = [name if "/" in name else f"tests/guest/devices/test_{name}.py" for name in names]
    done = guest.run([*PYTEST, "-rA", *files], env=ENVIRONMENT, timeout=patience(600))
    output = done.stdout.decode(errors="replace")
    print(output)
    assert done.returncode == 0, output + done.stderr.decode(errors="replace")
    summary = output.strip().splitlines()[-1]
    assert "passed" in summary
    assert "skipped" not in summary
    return output


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    devices: list[GuestDevice] = [
        Edu(),
        RootPort(Nvme(serial=SERIAL)),
        RootPort(E1000e()),
        RootPort(Xhci()),
        Ivshmem(size=1 << 16),
        RootPort(),
        SharedGroup(Nvme(serial="first"), Nvme(serial="second")),
        Ivshmem(size=1 << 24),
    ]
    with Guest(devices=devices) as guest:
        yield guest


def test_nvme(guest: Guest) -> None:
    run_tests(guest, "nvme", "peer_to_peer")


def test_e1000e(guest: Guest) -> None:
    run_tests(guest, "e1000e")


def test_bulk_copies(guest: Guest) -> None:
    run_tests(guest, "bulk_copies")


def test_random_accesses(guest: Guest) -> None:
    run_tests(guest, "random_accesses")


def test_mediated_devices(guest: Guest) -> None:
    run_tests(guest, "mdev", "graphics")


def test_example_of_nvme(guest: Guest) -> None:
    driver = ["sh", "-c", "basename $(readlink /sys/bus/pci/devices/0000:01:00.0/driver)"]
    assert guest.run(driver).stdout == b"nvme\n"
    done = guest.run(["python", "examples/nvme_identify.py", "0000:01:00.0"], timeout=patience())
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().startswith("0000:01:00.0: QEMU NVMe Ctrl, serial number pyiommufd-7, firmware ")
    assert guest.run(driver).stdout == b"nvme\n"
    refused = guest.run(["python", "examples/nvme_identify.py", "1234:11e8"], timeout=patience())
    assert refused.returncode == 1
    assert b"not an NVMe controller" in refused.stderr
    assert guest.run(["python", "examples/nvme_identify.py"]).returncode == 2


def test_without_an_iommu() -> None:
    """Two devices that no IOMMU covers, one with a mask of 64 bits: data moves by physical addresses."""
    mode = "vfio.enable_unsafe_noiommu_mode=1"
    with Guest(iommu="none", kernel_arguments=[mode]) as guest:
        run_tests(guest, "without_iommu", "tests/guest/core/test_without_iommu.py")


class Program:
    """A program in the guest that holds a device."""

    def __init__(self, guest: Guest, device: str, how: str) -> None:
        self.output = bytearray()
        self.errors = bytearray()
        self.status: int | None = None
        self._thread = threading.Thread(target=self._run, args=(guest, device, how))
        self._thread.start()
        until(lambda: b"holds" in self.output or self.status is not None, self.errors.decode)
        assert b"holds" in self.output, self.errors.decode()

    def _run(self, guest: Guest, device: str, how: str) -> None:
        done = guest.run(
            ["python", "-c", HOLD, device, how],
            stdout=self.output.extend,
            stderr=self.errors.extend,
            timeout=patience(300),
        )
        self.status = done.returncode

    def join(self) -> str:
        self._thread.join()
        return self.output.decode()


def test_hot_unplug_of_a_device_that_a_program_holds_mapped(guest: Guest) -> None:
    name, address = plug(guest)
    program = Program(guest, address, "serves")
    start = time.monotonic()
    guest.unplug(name, timeout=patience())
    took = time.monotonic() - start
    print(f"hot-unplug took {took:.2f} s")
    assert took < patience(LIMIT)
    assert program.join() == "holds\nreleased True True\n"
    assert program.status == 0, program.errors.decode()
    assert guest.run(["test", "-e", f"/sys/bus/pci/devices/{address}"]).returncode != 0


def test_program_that_ignores_the_request_is_named(guest: Guest) -> None:
    name, address = plug(guest)
    program = Program(guest, address, "ignores")
    with pytest.raises(GuestTimeoutError):
        guest.unplug(name, timeout=0.1)
    until(lambda: "No device request channel registered, blocked until released by user" in guest.dmesg(), guest.dmesg)
    with pytest.raises(GuestTimeoutError):
        guest.monitor.wait_event("DEVICE_DELETED", 0.1, device=name)
    named = guest.run(["python", "-c", HOLDERS, address]).stdout.decode()
    assert "holds /dev/vfio/devices/" in named
    assert "by mapping" in named
    pids = {line.split()[1] for line in named.splitlines()}
    assert len(pids) == 1
    guest.run(["kill", "-9", *pids], check=True)
    program.join()
    guest.monitor.wait_event("DEVICE_DELETED", patience(), device=name)


def test_vectors_available() -> None:
    """Without interrupt remapping Linux gives a device one MSI."""
    arguments = ["intremap=off", "iommufd.allow_unsafe_interrupts=1"]
    with Guest(devices=[Xhci(msix=False)], kernel_arguments=arguments) as guest:
        run_tests(guest, "vectors")


def test_igb_and_the_features_of_each_device() -> None:
    fetched = fetched_qemus(cache_folder())
    if not fetched:
        pytest.skip("there is no newer QEMU in the cache: tests/run --all fetches one")
    devices: list[GuestDevice] = [RootPort(Igb()), Edu(), RootPort(Nvme()), RootPort(VirtioRng())]
    arguments = ["vfio_pci.enable_sriov=1"]
    with Guest(devices=devices, qemu=fetched[0].program, kernel="7.3", kernel_arguments=arguments) as guest:
        run_tests(guest, "igb", "features", "sriov")
