"""Objects that hold a kernel handle: an iommufd, its address spaces, the devices bound to it."""
