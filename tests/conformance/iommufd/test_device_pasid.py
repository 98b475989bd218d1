"""Twins of the fixture ``iommufd_device_pasid``: page tables of DMA with PASIDs."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from pyiommufd import HWPT, IOAS, AlreadyAttachedError, NestedHWPT, UnsupportedError
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from tests.conformance.cases import Route, twin
from tests.conformance.iommufd.nested import check_page_request
from tests.conformance.iommufd.steps import refused
from tests.mock_data import stage1

PASID = 100
REPLACED = 200
FAULTING = 2048


@dataclass(frozen=True)
class PASIDs:
    """An address space, and a device on it that can do DMA with PASIDs.

    Attributes:
        iommufd: Whose they are.
        ioas: The address space.
        device: The device.
        unable: One that cannot, in the variant that has one.
    """

    iommufd: MockIOMMUFD
    ioas: IOAS
    device: MockDevice
    unable: MockDevice | None


@pytest.fixture(params=["no_pasid", "has_pasid"])
def pasids(request: pytest.FixtureRequest, iommufd: MockIOMMUFD) -> PASIDs:
    ioas = iommufd.alloc_ioas()
    assert ioas.id
    device = iommufd.mock_device(ioas, pasid=True)
    return PASIDs(iommufd, ioas, device, iommufd.mock_device(ioas) if request.param == "no_pasid" else None)


@twin("iommufd_device_pasid.pasid_attach", Route.MOCK)
def test_pasid_attach(pasids: PASIDs) -> None:
    device, ioas = pasids.device, pasids.ioas
    # To leave what it was never on is no mistake, to the kernel as to the library.
    commands.pasid_detach(pasids.iommufd.fileno(), device.stdev_id, PASID)
    device.detach(PASID)

    parent = device.alloc_hwpt(ioas, nest_parent=True)
    first, second = (parent.alloc_nested(stage1(), pasid=True) for _ in range(2))
    queue = pasids.iommufd.alloc_fault_queue()
    faulting = parent.alloc_nested(stage1(), pasid=True, fault_queue=queue)
    virtual = device.alloc_viommu(parent, commands.VIOMMU_TYPE).alloc_nested(stage1(), pasid=True)
    assert virtual.id not in (0, first.id, second.id, faulting.id)
    stage2 = device.alloc_hwpt(ioas, pasid=True)

    check_beside(device, parent, first, stage2)
    if pasids.unable:
        check_unable(pasids.unable, ioas, parent, first, stage2)
    check_attach(device, ioas, parent, first, stage2)
    check_replace(device, ioas, first, second, stage2)

    with on(device, faulting, FAULTING):
        check_page_request(device, queue, FAULTING)
        device.replace(stage2, FAULTING)
        assert device.on(stage2.id, FAULTING)
    faulting.close()
    queue.close()
    device.replace(ioas)
    stage2.close()


@contextlib.contextmanager
def on(device: MockDevice, table: HWPT | NestedHWPT, pasid: int) -> Iterator[None]:
    """The DMA with a PASID is by a page table at the beginning of the block, and by none after it."""
    device.attach(table, pasid)
    assert device.on(table.id, pasid)
    yield
    device.detach(pasid)
    assert device.on(None, pasid)


def refused_and_still(
    device: MockDevice, code: int, attach: Callable[[], object], table: HWPT | NestedHWPT | None, pasid: int
) -> None:
    """An attach is refused, and leaves the DMA with the PASID by what it was by."""
    with refused(code):
        attach()
    assert device.on(table.id if table else None, pasid)


def check_beside(device: MockDevice, parent: HWPT, first: NestedHWPT, stage2: HWPT) -> None:
    """Beside PASIDs, what is without one has to be on a page table that is made for that, too."""
    device.replace(parent)
    refused_and_still(device, errno.EINVAL, lambda: device.attach(stage2, PASID), None, PASID)
    device.replace(stage2)
    with on(device, first, PASID):
        with refused(errno.EINVAL):
            device.replace(parent)
        assert device.on(stage2.id)


def check_unable(unable: MockDevice, ioas: IOAS, parent: HWPT, first: NestedHWPT, stage2: HWPT) -> None:
    """A device without PASIDs can be on such a page table, but not with a PASID."""
    unable.replace(first)
    assert unable.on(first.id)
    unable.replace(ioas)
    for table in (parent, stage2):
        with pytest.raises(UnsupportedError, match="no DMA with PASIDs"):
            unable.attach(table, PASID)
        refused_and_still(unable, errno.EINVAL, partial(unable.attach_to_id, table.id, PASID), None, PASID)


def check_attach(device: MockDevice, ioas: IOAS, parent: HWPT, first: NestedHWPT, stage2: HWPT) -> None:
    refused_and_still(device, errno.EINVAL, lambda: device.attach(parent, PASID), None, PASID)
    refused_and_still(device, errno.EINVAL, lambda: device.attach(ioas, PASID), None, PASID)
    with on(device, stage2, PASID):
        with pytest.raises(AlreadyAttachedError):
            device.attach(first, PASID)
        refused_and_still(device, errno.EBUSY, lambda: device.attach_to_id(first.id, PASID), stage2, PASID)
    with on(device, first, PASID):
        refused_and_still(device, errno.EBUSY, lambda: device.attach_to_id(first.id, PASID), first, PASID)


def check_replace(device: MockDevice, ioas: IOAS, first: NestedHWPT, second: NestedHWPT, stage2: HWPT) -> None:
    with pytest.raises(ValueError, match="nothing to replace"):
        device.replace(stage2, REPLACED)
    refused_and_still(
        device, errno.EINVAL, lambda: device.attach_to_id(stage2.id, REPLACED, replace=True), None, REPLACED
    )
    with on(device, stage2, REPLACED):
        refused_and_still(device, errno.EINVAL, lambda: device.replace(ioas, REPLACED), stage2, REPLACED)
        for nested in (first, second):
            device.replace(nested, REPLACED)
            assert device.on(nested.id, REPLACED)
            assert device.page_table_for(REPLACED) is nested
    # The mock IOMMU fails on purpose: the old one stays.
    failing = commands.PASID_THAT_FAILS
    with on(device, stage2, failing):
        refused_and_still(device, errno.ENOMEM, lambda: device.replace(first, failing), stage2, failing)
        assert device.page_table_for(failing) is stage2
