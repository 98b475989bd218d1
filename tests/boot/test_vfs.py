"""Virtual functions of a device that vfio-pci has, which it makes where it is told so when it is loaded."""

from __future__ import annotations

import pytest

from pyiommufd.testing import Guest
from tests.patience import patience
from tests.runner.claims_machine import CLAIMS_DEVICES

pytestmark = pytest.mark.boots

PROGRAM = """
from pyiommufd import find_device, list_devices, plan_claim
from pyiommufd.host.claims.vfs import set_vfs
from pyiommufd.host.discovery.vfs import vfs_of

pf = next(device for device in list_devices("pci") if vfs_of(device).total)
assert pf.driver == "nvme"
with plan_claim(pf).apply() as claim:
    found = set_vfs(pf, 2, report=print)
    for function in found.devices:
        print(function.driver, bool(function.vfio_cdev))
    claim.release(report=print)
print(find_device(pf.name).driver, vfs_of(pf).count)
"""


def test_functions_of_a_claimed_device_go_when_it_is_given_back() -> None:
    with Guest(devices=CLAIMS_DEVICES, kernel_arguments=["vfio_pci.enable_sriov=1"]) as guest:
        done = guest.run(["python", "-c", PROGRAM], timeout=patience())
    assert done.returncode == 0, done.stderr.decode()
    lines = [line.partition(": ")[2] or line for line in done.stdout.decode().splitlines()]
    assert lines == [
        "set sriov_numvfs to 2",
        "vfio-pci True",
        "vfio-pci True",
        "set sriov_numvfs to 0",
        "unbind from vfio-pci",
        "clear driver_override",
        "bind to nvme",
        "set power/control to on",
        "nvme 0",
    ]
