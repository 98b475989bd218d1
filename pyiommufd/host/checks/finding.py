"""What a look at this machine found: something in order, or a shortfall with what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.groups import Group
from pyiommufd.printable import Sentences, listed


class State(StrEnum):
    """What came of a check."""

    OK = "ok"
    WARNING = "warning"
    """Passthrough works, with a limit or for some devices."""
    MISSING = "missing"
    """Passthrough does not work before this is mended."""
    UNKNOWN = "unknown"
    """This machine does not tell."""


@dataclass(frozen=True, slots=True, repr=False)
class Finding(Sentences):
    """What one check found.

    Attributes:
        check: The check, a stable name: ``iommu``, ``iommufd``, ``cdev``, ``vfio-pci``, ``isolated-msi``,
            ``namespaces``, ``reserved``, ``address-width``, ``memlock``, ``permissions``, ``d3cold``, ``reset`` or
            ``mixed-group``.
        state: What came of it.
        summary: What it is, in a sentence.
        evidence: What was seen.
        fix: What mends it; empty where nothing has to be.
        devices: The names of the devices concerned; empty where it is the whole machine.
    """

    check: str
    state: State
    summary: str
    evidence: str = ""
    fix: str = ""
    devices: tuple[str, ...] = ()

    def _line(self) -> str:
        of = f" of {listed(self.devices)}" if self.devices else ""
        return f"{self.check}{of}: {self.state}, {self.summary}"


@dataclass(frozen=True, slots=True)
class Machine:
    """What the checks look at: the devices and groups, and the folder that holds the device nodes."""

    devices: tuple[HostDevice, ...]
    groups: tuple[Group, ...]
    dev: Path = Path("/dev")

    @property
    def iommu_groups(self) -> tuple[Group, ...]:
        """The groups of an IOMMU: those that VFIO has made are left out."""
        return tuple(group for group in self.groups if not group.is_made_by_vfio)
