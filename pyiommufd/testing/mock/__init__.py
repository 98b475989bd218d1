"""The kernel's own mock IOMMU: devices, accesses, dma-bufs and failures on demand, by its test command.

It takes a kernel with CONFIG_IOMMUFD_TEST, which is for guests only: the command lets every user of ``/dev/iommu``
make kernel objects that no hardware stands behind. What it answers is iommufd itself; only the IOMMU is a mock.

    with MockIOMMUFD() as iommufd:
        ioas = iommufd.alloc_ioas()
        device = iommufd.mock_device(ioas)
"""

from pyiommufd.testing.mock.access import MockAccess, PinnedPages
from pyiommufd.testing.mock.device import MockDevice
from pyiommufd.testing.mock.dmabuf import MockDMABuf
from pyiommufd.testing.mock.failures import FailNth, InjectionMissingError, fail_each, fail_nth
from pyiommufd.testing.mock.iommufd import MockIOMMUFD

__all__ = [
    "FailNth",
    "InjectionMissingError",
    "MockAccess",
    "MockDMABuf",
    "MockDevice",
    "MockIOMMUFD",
    "PinnedPages",
    "fail_each",
    "fail_nth",
]
