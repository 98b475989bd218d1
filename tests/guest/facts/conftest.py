"""What the attachment model builds on: a test a sentence, on the kernel that runs.

The group has two edu devices, whose DMA is seen in memory, a third device, and a bridge. Whether data arrives is the
proof throughout.
"""

from __future__ import annotations

import pytest

from pyiommufd import (
    IOMMUFD,
    Claim,
    Device,
    HostDevice,
)
from tests.guest.facts.members import names


@pytest.fixture
def members(claimed: Claim, first: HostDevice) -> set[str]:
    group = first.group
    assert group is not None
    return names(group.devices)


@pytest.fixture
def third_device(
    claimed: Claim, iommufd: IOMMUFD, device: Device, peer_device: Device, neighbour: HostDevice
) -> Device:
    """The third device of the group, bound after the two edu devices."""
    return iommufd.bind(neighbour)
