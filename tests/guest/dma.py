"""Where the guest tests map memory for an edu device, and what their fixture `arrives` is."""

from __future__ import annotations

from collections.abc import Callable

from pyiommufd import DMABuffer
from pyiommufd.testing.drivers.edu import EduDriver

IOVA = 0x100000
PIECE = 64
"""Bytes of a transfer whose only point is whether it arrives."""

Arrives = Callable[[EduDriver, DMABuffer], bool]
