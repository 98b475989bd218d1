"""What this machine has, and who uses it: devices, groups, drivers. Issues no ioctl on iommufd or VFIO."""
