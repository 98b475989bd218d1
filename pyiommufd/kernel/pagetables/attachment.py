"""The attachment model: which page table a group is on, and whose DMA an action changes.

The kernel keeps attachment state per (iommufd, IOMMU group, PASID), never per device (Linux 7.3,
drivers/iommu/iommufd/device.c, `struct iommufd_attach`): a group has one page table at a time for each PASID, and
every member is on it, bound or not. What is kept here is what this process did through its own objects. It is written
by the calls themselves, in C.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.iterables import pairs
from pyiommufd.uapi import ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.device.attachable import Attachable
    from pyiommufd.kernel.pagetables.page_table import PageTable


class ChangeKind(StrEnum):
    """The kinds of change that a bind, attach, replace or detach makes to its IOMMU group."""

    FIRST = "first"
    """The group's first: it moves every member."""
    JOIN = "join"
    """The group is there already: the device joins it, and nobody's DMA changes."""
    REPLACE = "replace"
    """The group goes to another page table, every member with it."""
    NOOP = "noop"
    """Nothing changes."""
    DETACH = "detach"
    """The device leaves; the last one of the group to do so leaves every member blocked."""
    UNBLOCKED = "unblocked"
    """No IOMMU covers the device, so nothing is blocked: its DMA reaches all memory before and after, whatever was
    done."""


UNBLOCKED_REASON = "nothing is blocked: no IOMMU covers the device, whose DMA reaches all memory before and after"
"""What a change or preview of `ChangeKind.UNBLOCKED` says."""


class Verdict(StrEnum):
    """Whether the outcome of an attach, or the effect of an action, is known."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    KNOWN = "known"


@dataclass(frozen=True, slots=True)
class DMAChange:
    """The members of an IOMMU group whose DMA a bind, attach, replace or detach has changed.

    Attributes:
        kind: What the action was to the group, as far as this process knows.
        devices: The members of the group whose DMA goes elsewhere than before; none where nothing changed. Where the
            verdict is unknown, those whose DMA may do so: it may also be as it was, by what others attached.
        verdict: `Verdict.KNOWN`; or `Verdict.UNKNOWN` where others may use the iommufd (`IOMMUFD.shared`) and it is
            up to what they did, or a signal handler came between with an action of its own.
    """

    kind: ChangeKind
    devices: tuple[HostDevice, ...]
    verdict: Verdict = Verdict.KNOWN

    def __repr__(self) -> str:
        return f"<DMAChange {self.kind}, {self.verdict}: {_whose(self.kind, self.devices)}>"


@dataclass(frozen=True, slots=True)
class AttachPreview:
    """The predicted outcome of an attach, or of a replace. Returned by `Device.preview_attach`.

    Attributes:
        verdict: Whether the kernel would accept it; unknown where user space cannot know.
        kind: What it would be to the group.
        changes: The members whose DMA it would change.
        reasons: What the verdict rests on, in sentences.
    """

    verdict: Verdict
    kind: ChangeKind
    changes: tuple[HostDevice, ...]
    reasons: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<AttachPreview {self.verdict}, {self.kind}: {_whose(self.kind, self.changes)}>"


def _whose(kind: ChangeKind, devices: Iterable[HostDevice]) -> str:
    """Whose DMA a change is of, in words."""
    return UNBLOCKED_REASON if kind is ChangeKind.UNBLOCKED else ", ".join(one.name for one in devices) or "nobody"


@dataclass(slots=True)
class Attachment:
    """A group's page table for one PASID, and its devices: those with a cell that is not 0 are attached to it."""

    group_on: ioctls.Cell = field(default_factory=lambda: ioctls.new_cell("uint32_t"))
    cells: dict[Attachable, ioctls.Cell] = field(default_factory=dict)
    tables: dict[int, PageTable] = field(default_factory=dict)

    @property
    def page_table(self) -> PageTable:
        """The group's page table while a device is attached, found by its id, which is not reused meanwhile."""
        return self.tables[self.group_on[0]]

    def cell(self, device: Attachable) -> ioctls.Cell:
        """What says whether a device is attached."""
        return self.cells.setdefault(device, ioctls.new_cell("int"))

    @property
    def devices(self) -> list[Attachable]:
        """The devices that are attached."""
        return [device for device, cell in pairs(self.cells) if cell[0] and not device.closed]


@dataclass(slots=True)
class GroupState:
    """The state of one IOMMU group in one iommufd.

    Attributes:
        members: The devices that are bound.
        attachments: For each PASID; None: without one.
        changes: How often something was bound, attached, detached or closed.
    """

    members: dict[Attachable, None] = field(default_factory=dict)
    attachments: dict[int | None, Attachment] = field(default_factory=dict)
    changes: int = 0

    @property
    def bound(self) -> list[Attachable]:
        """The devices that are bound."""
        return [device for device in list(self.members) if not device.closed]

    def attachment(self, pasid: int | None) -> Attachment:
        """That of a PASID."""
        return self.attachments.setdefault(pasid, Attachment())

    def attached(self, device: Attachable, pasid: int | None) -> Attachment | None:
        """The attachment that this device itself has, apart from those of its peers."""
        attachment = self.attachments.get(pasid)
        return attachment if attachment is not None and device in attachment.devices else None

    def forget(self, device: Attachable) -> None:
        """A device has been closed."""
        self.changes += 1
        self.members.pop(device, None)
        for attachment in list(self.attachments.values()):
            attachment.cells.pop(device, None)
