"""What this machine has: devices, IOMMU groups, drivers, who uses them. Nothing here issues an ioctl."""
