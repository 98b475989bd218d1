"""Virtual IOMMUs on the mock IOMMU: it has all that there is of them, in one piece each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyiommufd import HWPT, IOAS, VIOMMU
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands


@pytest.fixture
def iommufd() -> Iterator[MockIOMMUFD]:
    with MockIOMMUFD() as iommufd:
        yield iommufd


@pytest.fixture
def device(iommufd: MockIOMMUFD, ioas: IOAS) -> MockDevice:
    return iommufd.mock_device(ioas)


@pytest.fixture
def parent(device: MockDevice, ioas: IOAS) -> HWPT:
    return device.alloc_hwpt(ioas, nest_parent=True)


@pytest.fixture
def viommu(device: MockDevice, parent: HWPT) -> VIOMMU:
    return device.alloc_viommu(parent, commands.VIOMMU_TYPE)
