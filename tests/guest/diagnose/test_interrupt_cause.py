"""Without remapped interrupts every bind is refused; on a machine whose IOMMU does not remap them."""

from __future__ import annotations

import errno
import subprocess

import pytest

from pyiommufd import IOMMUFD, Cause, ClaimRefusedError, HostDevice, list_devices, plan_claim
from pyiommufd.host.checks.finding import State
from pyiommufd.host.checks.readiness import readiness
from pyiommufd.host.overview.details import device_details
from pyiommufd.host.overview.standing import Standing, standings
from pyiommufd.host.running_kernel import interrupts_isolated, unsafe_interrupts_allowed
from pyiommufd.testing.drivers import edu
from tests.runner.causes import Prover

BIND = "VFIO_DEVICE_BIND_IOMMUFD"


@pytest.fixture(scope="session", autouse=True)
def right_machine() -> None:
    """An edu device will do; the other devices of the default guest are missing here."""


@pytest.fixture(scope="session")
def edu_device() -> HostDevice:
    ids = (edu.VENDOR_ID, edu.DEVICE_ID)
    return next(device for device in list_devices("pci") if (device.vendor_id, device.device_id) == ids)


def test_that_every_bind_will_fail_is_said_before_the_claim(edu_device: HostDevice) -> None:
    if interrupts_isolated():
        pytest.skip("this machine remaps interrupts; tests.runner.causes has one that does not")
    (refusal,) = plan_claim(edu_device).refusals
    assert (refusal.device, refusal.kind) == (edu_device.name, "isolated-msi")
    with pytest.raises(ClaimRefusedError, match="interrupt remapping"):
        plan_claim(edu_device).apply()
    assert edu_device.refreshed().driver is None
    assert standings(list_devices())[edu_device] == Standing.UNBINDABLE
    assert device_details(edu_device).plan == plan_claim(edu_device)


def test_interrupts_that_are_not_isolated(prove: Prover, edu_device: HostDevice, iommufd: IOMMUFD) -> None:
    if interrupts_isolated():
        pytest.skip("this machine remaps interrupts; tests.runner.causes has one that does not")
    assert unsafe_interrupts_allowed() is False
    (finding,) = [finding for finding in readiness() if finding.check == "isolated-msi"]
    assert finding.state is State.MISSING

    def attempt() -> None:
        iommufd.bind(edu_device).close()

    def fix(cause: Cause) -> None:
        assert "/proc/interrupts" in cause.evidence
        assert finding.fix.endswith(cause.fix.rpartition(": ")[2])
        subprocess.run(["sh", "-c", cause.fix.rpartition(": ")[2]], check=True)
        assert unsafe_interrupts_allowed()

    with plan_claim(edu_device, force=["isolated-msi"]).apply():
        prove("interrupts are not isolated", BIND, errno.EPERM, attempt, fix,
              cause="does not isolate the interrupts", says="echo 1 > ")  # fmt: skip
    (finding,) = [finding for finding in readiness() if finding.check == "isolated-msi"]
    assert finding.state is State.WARNING
