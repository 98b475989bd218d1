"""Fixtures on the kernel's mock IOMMU, for what VT-d under QEMU cannot do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyiommufd import IOAS
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD


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
