"""An iommufd that somebody else uses as well."""

from __future__ import annotations

import errno
import mmap
import os

import pytest

from pyiommufd import (
    IOMMUFD,
    BusyError,
    Device,
    DMABuffer,
    HostDevice,
    IoctlError,
    NotFoundError,
    Verdict,
)
from tests.by_id import destroy

IOVA = 0x100000
PAGE = mmap.PAGESIZE


@pytest.mark.long
def test_shared_iommufd_says_unknown_of_what_it_cannot_see(device: Device, peer: HostDevice, iommufd: IOMMUFD) -> None:
    """The other holder is this process, by an object that knows nothing of the first."""
    ioas = iommufd.alloc_ioas()
    device.attach(ioas)
    with IOMMUFD.from_fd(os.dup(iommufd.fileno())) as shared:
        assert shared.shared
        assert shared.objects == ()
        bound = shared.bind(peer)
        # Not the group's first bind, which cannot be known: so it does not say that it was.
        assert bound.bind_change.devices == ()
        mine = shared.alloc_ioas()
        assert mine.id != ioas.id
        preview = bound.preview_attach(mine)
        assert preview.verdict is Verdict.UNKNOWN
        assert any("shared" in reason for reason in preview.reasons)
        # What is behind it: the kernel refuses, for an attachment that this object does not have.
        with pytest.raises(IoctlError) as caught:
            bound.attach(mine)
        assert caught.value.errno == errno.EINVAL
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
        victim._let_go()
        with pytest.raises(BusyError):
            destroy(iommufd, mine.id)
