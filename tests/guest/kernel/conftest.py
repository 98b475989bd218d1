"""What the tests of `pyiommufd.kernel` share: the members of the shared group, and the kernel's mock IOMMU.

The group has two edu devices, whose DMA is seen in memory, a third device, and a bridge. The mock is for what VT-d
under QEMU cannot do.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyiommufd import IOAS, IOMMUFD, Device, HostDevice
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD
from tests.guest.kernel.members import names


@pytest.fixture
def members(first: HostDevice) -> set[str]:
    """The names of all that are in the shared group."""
    group = first.group
    assert group is not None
    return names(group.devices)


@pytest.fixture
def third_device(iommufd: IOMMUFD, device: Device, peer_device: Device, neighbour: HostDevice) -> Device:
    """The third device of the group, bound after the two edu devices."""
    return iommufd.bind(neighbour)


@pytest.fixture
def mock() -> Iterator[MockIOMMUFD]:
    with MockIOMMUFD() as iommufd:
        yield iommufd


@pytest.fixture
def mock_ioas(mock: MockIOMMUFD) -> IOAS:
    return mock.alloc_ioas()


@pytest.fixture
def mock_device(mock: MockIOMMUFD, mock_ioas: IOAS) -> MockDevice:
    """A device with PASIDs, attached to the address space itself."""
    return mock.mock_device(mock_ioas, pasid=True)
