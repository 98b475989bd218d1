"""The devices and IOMMU groups of this machine, found through udev and sysfs."""
