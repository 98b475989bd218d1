"""In place of the guest's own iommufd and device: the mock IOMMU, and a device of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyiommufd import IOAS
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD


@pytest.fixture
def iommufd() -> Iterator[MockIOMMUFD]:
    with MockIOMMUFD() as iommufd:
        yield iommufd


@pytest.fixture
def device(iommufd: MockIOMMUFD, ioas: IOAS) -> MockDevice:
    return iommufd.mock_device(ioas)
