"""An iommufd that somebody else uses as well."""

from __future__ import annotations

import errno
import mmap
import os

import pytest

from pyiommufd import (
    IOMMUFD,
    BusyError,
    ChangeKind,
    Device,
    DMABuffer,
    GroupConflictError,
    HostDevice,
    NotFoundError,
    Verdict,
)
from tests.by_id import destroy
from tests.guest.dma import IOVA

PAGE = mmap.PAGESIZE


@pytest.mark.long
def test_shared_iommufd_says_unknown_of_what_it_cannot_see(device: Device, peer: HostDevice, iommufd: IOMMUFD) -> None:
    """The other holder is this process, by another object: what it did is known; what others may have done is not."""
    ioas = iommufd.alloc_ioas()
    device.attach(ioas)
    with IOMMUFD.from_fd(os.dup(iommufd.fileno())) as shared:
        assert shared.shared
        assert shared.objects == ()
        bound = shared.bind(peer)
        # Not the group's first bind, which is known: this process made that.
        assert (bound.bind_change.kind, bound.bind_change.devices) == (ChangeKind.NOOP, ())
        mine = shared.alloc_ioas()
        assert mine.id != ioas.id
        preview = bound.preview_attach(mine)
        assert preview.verdict is Verdict.UNKNOWN
        assert any("shared" in reason for reason in preview.reasons)
        # What is behind it: the kernel refuses, for the attachment by the first object.
        with pytest.raises(GroupConflictError) as caught:
            bound.attach(mine)
        assert caught.value.errno == errno.EINVAL
        assert caught.value.peers == (device.host,)
        device.detach()
        bound.attach(mine)
        # And the other way round: what somebody destroys under it is an error with its name.
        victim = iommufd.alloc_ioas()
        mapping = victim.map(DMABuffer(PAGE), iova=IOVA)
        destroy(shared, victim.id)
        with pytest.raises(NotFoundError):
            victim.map(DMABuffer(PAGE), iova=2 * IOVA)
        mapping.unmap()
        assert not mapping.mapped
        with pytest.raises(NotFoundError):
            victim.close()
        victim._release()
        with pytest.raises(BusyError):
            destroy(iommufd, mine.id)
