"""The attachment model: which page table a group is on, and whose DMA an action changes.

The kernel keeps attachment state per (iommufd, IOMMU group, PASID), never per device (Linux 7.3,
drivers/iommu/iommufd/device.c, `struct iommufd_attach`): a group has one page table at a time for each PASID, and
every member is on it, bound or not. What is kept here is what this process did through its own objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from ..host.devices import HostDevice

if TYPE_CHECKING:
    from .attachable import Attachable
    from .hwpt import HWPT
    from .ioas import IOAS

    PageTable: TypeAlias = IOAS | HWPT


class ChangeKind(StrEnum):
    """What a bind, attach, replace or detach does to its IOMMU group."""

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


class Verdict(StrEnum):
    """What the kernel is going to answer."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class DMAChange:
    """Whose DMA an action has changed.

    Attributes:
        kind: What the action was to the group.
        devices: The members of the group whose DMA goes elsewhere than before; none where nothing changed.
    """

    kind: ChangeKind
    devices: tuple[HostDevice, ...]


@dataclass(frozen=True, slots=True)
class AttachPreview:
    """What an attach, or the replace of an attached device, would do.

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


@dataclass(frozen=True, slots=True)
class Binding:
    """What a bind has come to.

    Attributes:
        host: The device, as it was then.
        id: Its id within the iommufd.
        state: What the iommufd has of its group.
        change: Whose DMA the bind has changed.
    """

    host: HostDevice
    id: int
    state: GroupState
    change: DMAChange


@dataclass(slots=True)
class Attachment:
    """A group's page table for one PASID, and its devices that are attached to it."""

    page_table: PageTable
    devices: list[Attachable] = field(default_factory=list)


@dataclass(slots=True)
class GroupState:
    """What one iommufd has of one IOMMU group: bound devices, and an attachment for each PASID (None: without)."""

    bound: list[Attachable] = field(default_factory=list)
    attachments: dict[int | None, Attachment] = field(default_factory=dict)

    def attachment_of(self, device: Attachable, pasid: int | None) -> Attachment | None:
        """The attachment that this device itself has, apart from those of its peers."""
        attachment = self.attachments.get(pasid)
        return attachment if attachment is not None and device in attachment.devices else None

    def add(self, device: Attachable, page_table: PageTable, pasid: int | None) -> None:
        """Record an attach or a replace that the kernel has accepted."""
        attachment = self.attachments.setdefault(pasid, Attachment(page_table))
        attachment.page_table = page_table
        if device not in attachment.devices:
            attachment.devices.append(device)

    def remove(self, device: Attachable, pasid: int | None) -> bool:
        """Record a detach. Returns whether it was the last of the group, which leaves all members blocked."""
        attachment = self.attachment_of(device, pasid)
        if attachment is None:
            return False
        attachment.devices.remove(device)
        if not attachment.devices:
            del self.attachments[pasid]
            return True
        return False
