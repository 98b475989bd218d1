"""The fixtures of iommufd.c, and its variants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pyiommufd import IOAS
from pyiommufd.testing.mock import MockDevice, MockIOMMUFD, commands
from tests.conformance.iommufd.steps import PAGE, aligned


@pytest.fixture
def buffer() -> memoryview:
    """Sixteen pages of shared memory, at an address that is a multiple of a huge page."""
    return aligned(16 * PAGE)


@pytest.fixture
def iommufd(buffer: memoryview) -> Iterator[MockIOMMUFD]:
    """An iommufd; after it nothing of the buffer is pinned any more."""
    with MockIOMMUFD() as iommufd:
        yield iommufd
    with MockIOMMUFD() as afterwards:
        assert afterwards.pinned(buffer, 0)


@dataclass(frozen=True)
class Space:
    """An address space, and the mock devices that are attached to it.

    Attributes:
        iommufd: Whose it is.
        ioas: The address space.
        devices: The mock devices.
        base: The first address that they reach, 0 where there are none.
        pasid_device: One with PASIDs, beside them.
    """

    iommufd: MockIOMMUFD
    ioas: IOAS
    devices: tuple[MockDevice, ...]
    base: int
    pasid_device: MockDevice | None


@dataclass(frozen=True)
class Variant:
    """How many mock devices, and how many bytes iommufd may take for one batch of pages."""

    devices: int
    memory_limit: int = commands.MEMORY_LIMIT
    pasid: bool = False


VARIANTS = {
    "no_domain": Variant(0),
    "mock_domain": Variant(1, pasid=True),
    "two_mock_domain": Variant(2),
    "mock_domain_limit": Variant(1, memory_limit=16),
}


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
def space(request: pytest.FixtureRequest, iommufd: MockIOMMUFD) -> Iterator[Space]:
    variant: Variant = request.param
    ioas = iommufd.alloc_ioas()
    assert ioas.id
    # By another iommufd, as the limit is the machine's, and the test may close this one.
    with MockIOMMUFD() as limited, limited.memory_limit(variant.memory_limit):
        devices = tuple(iommufd.mock_device(ioas) for _ in range(variant.devices))
        for device in devices:
            assert all(device.cache_holds(entry, commands.CACHE_DEFAULT) for entry in range(commands.CACHE_ENTRIES))
        pasid_device = iommufd.mock_device(ioas, pasid=True) if variant.pasid else None
        yield Space(iommufd, ioas, devices, commands.APERTURE_START if devices else 0, pasid_device)
        # What uses the memory goes before the limit on it does.
        iommufd.close()
