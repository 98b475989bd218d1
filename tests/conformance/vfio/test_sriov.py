"""Twins of vfio_pci_sriov_uapi_test.c: the VF token that a virtual function is bound with."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable, Iterator

import pytest

from pyiommufd import IOMMUFD, Device, HostDevice
from pyiommufd.host import sysfs
from pyiommufd.kernel.device.device_info import DeviceFlag
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.steps import refused

FIRST, SECOND = uuid.uuid4(), uuid.uuid4()

Bind = Callable[[uuid.UUID], None]


@pytest.fixture(scope="module")
def function(host: HostDevice) -> Iterator[HostDevice]:
    """A virtual function of the device, which its driver makes, and so has."""
    assert not host.virtual_functions
    sysfs.write(host.sys_path / "sriov_numvfs", "1")
    (function,) = host.virtual_functions
    assert function.on_vfio
    assert function.physical_function == host
    yield function
    sysfs.write(host.sys_path / "sriov_numvfs", "0")


@pytest.fixture
def physical(host: HostDevice, function: HostDevice, iommufd: IOMMUFD) -> Device:
    """The physical function, bound; that sets its token."""
    return iommufd.bind(host, token=FIRST)


@pytest.fixture(params=[FIRST, SECOND, None], ids=["iommufd_same_uuid", "iommufd_diff_uuid", "iommufd_null_uuid"])
def bind(request: pytest.FixtureRequest, function: HostDevice, iommufd: IOMMUFD) -> Bind:
    """Bind the virtual function with the variant's token: it has to be accepted where that is the current one."""
    token: uuid.UUID | None = request.param

    def bind(current: uuid.UUID) -> None:
        if token != current:
            with refused(errno.EACCES):
                iommufd.bind(function, token=token)
        else:
            assert DeviceFlag.PCI in iommufd.bind(function, token=token).info().flags

    return bind


@twin("vfio_pci_sriov_uapi_test.init_token_match", Route.PUBLIC)
def test_token(physical: Device, bind: Bind) -> None:
    bind(FIRST)


@twin("vfio_pci_sriov_uapi_test.pf_early_close", Route.PUBLIC)
def test_token_of_a_closed_physical_function(physical: Device, bind: Bind) -> None:
    physical.close()
    bind(FIRST)


@twin("vfio_pci_sriov_uapi_test.override_token", Route.PUBLIC)
def test_token_set_later(physical: Device, bind: Bind) -> None:
    physical.set_vf_token(SECOND)
    bind(SECOND)
