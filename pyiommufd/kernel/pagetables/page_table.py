"""What a device can be attached to."""

from __future__ import annotations

from typing import TypeAlias

from pyiommufd.kernel.memory.ioas import IOAS
from pyiommufd.kernel.pagetables.hwpt import HWPT
from pyiommufd.kernel.pagetables.nested import NestedHWPT

PageTable: TypeAlias = IOAS | HWPT | NestedHWPT
"""An address space, whose page tables the kernel makes by itself, or an explicit page table."""
