"""Objects that hold a kernel handle: an iommufd, its address spaces, the devices bound to it."""

import pyiommufd.diagnose  # noqa: F401  (what the kernel refuses has causes)
