"""A QEMU guest with a virtual IOMMU."""

from pyiommufd.testing.guest.guest import Guest

__all__ = ["Guest"]
