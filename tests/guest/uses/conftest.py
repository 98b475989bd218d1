"""What the tests of devices in use share; tests/boot/test_uses.py starts the guest that has such devices."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyiommufd import IOAS, IOMMUFD, ClaimRefusedError, Device, HostDevice, list_devices, plan_claim, recover
from pyiommufd.host.claims import journal
from tests.guest.uses.disks import node_of
from tests.guest.uses.types import Driven, Refused, Runner
from tests.patience import until


@pytest.fixture(scope="session", autouse=True)
def right_machine() -> None:
    """These tests ask for disks and cards, and not for the devices of the default guest."""
    if not list(Path("/sys/class/block").glob("vda1")):
        pytest.skip("this guest lacks the disks and cards that these tests are of: run tests/boot/test_uses.py")
    recover()


@pytest.fixture(scope="session")
def run() -> Runner:
    """Run a command that has to succeed, and return its output."""

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    return run


def _drivers(device: HostDevice) -> dict[str, str | None]:
    assert device.group is not None
    return {member.name: member.driver for member in device.group.devices}


@pytest.fixture(scope="session")
def refused() -> Refused:
    """What a claim is refused for, as device, kind and reason; and that force lets through what it names, and no more.

    Neither the plan nor the attempt changes anything.
    """

    def refused(device: HostDevice) -> list[tuple[str, str, str]]:
        before = _drivers(device)
        plan = plan_claim(device)
        with pytest.raises(ClaimRefusedError) as caught:
            plan.apply()
        assert caught.value.refusals == plan.refusals
        assert _drivers(device) == before
        assert journal.records() == []
        kinds = {refusal.kind for refusal in plan.refusals}
        for kind in kinds if len(kinds) > 1 else ():
            others = tuple(refusal for refusal in plan.refusals if refusal.kind != kind)
            assert plan_claim(device, force=[kind]).refusals == others
        assert plan_claim(device, force=kinds).refusals == ()
        return [(refusal.device, refusal.kind, refusal.reason) for refusal in plan.refusals]

    return refused


@pytest.fixture(scope="session")
def driven() -> Driven:
    """Claim a device, bind and attach it, able to do DMA; at the end give everything back."""

    @contextmanager
    def driven(host: HostDevice) -> Iterator[tuple[Device, IOAS]]:
        before = _drivers(host)
        with plan_claim(host).apply(), IOMMUFD() as iommufd:
            device = iommufd.bind(host)
            ioas = iommufd.alloc_ioas()
            device.attach(ioas)
            device.bus_master = True
            yield device, ioas
        assert _drivers(host) == before

    return driven


def _with_serial(kind: str, serial: str) -> HostDevice:
    (path,) = (path for path in Path("/sys/class", kind).glob("*/serial") if path.read_text().strip() == serial)
    above = [one for one in list_devices("pci") if path.resolve().is_relative_to(one.sys_path)]
    return max(above, key=lambda device: len(device.sys_path.parts))


@pytest.fixture(scope="session")
def shared_disk() -> HostDevice:
    """An NVMe disk that shares its group with an edu device."""
    return _with_serial("nvme", "shared")


@pytest.fixture(scope="session")
def edu_beside_disk(shared_disk: HostDevice) -> HostDevice:
    """That edu device."""
    assert shared_disk.group is not None
    return next(one for one in shared_disk.group.devices if one.vendor_id == 0x1234)


@pytest.fixture(scope="session")
def disk() -> HostDevice:
    """An NVMe disk that is alone in its group."""
    return _with_serial("nvme", "alone")


@pytest.fixture(scope="session")
def system_disk() -> HostDevice:
    """A virtio disk with a partition, alone in its group."""
    return _with_serial("block", "system")


@pytest.fixture
def node(disk: HostDevice) -> Path:
    """The node of that disk, which may be after its driver is bound."""
    path = until(lambda: node_of(disk))
    assert path is not None
    return path
