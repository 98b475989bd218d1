"""The kernel's constants, under the kernel's names, as plain integers: `uapi.IOMMU_IOAS_MAP`.

Everything that iommufd.h and vfio.h in this folder define: ioctl request numbers, flags, enumerators and
indices. Request numbers are those of the architecture that the extension was built for.

The names come from the compiled extension; `__init__.pyi`, written by `python build_cffi.py --stub`, lists
them for type checkers and editors.
"""

from pyiommufd._uapi import lib as _lib

# The functions of entry.h and window.h are in the same namespace as the constants.
globals().update({name: value for name in dir(_lib) if isinstance(value := getattr(_lib, name), int)})
