"""A QEMU guest with a virtual IOMMU."""
