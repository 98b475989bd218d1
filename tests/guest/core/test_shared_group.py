"""Two devices that share a group: whatever one does, the other's DMA goes along."""

from __future__ import annotations

import errno

import pytest

from pyiommufd import IOAS, IOMMUFD, ChangeKind, Device, DMABuffer, Group, GroupConflictError, Verdict
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA, Arrives

Pair = tuple[Device, Device]
Edus = tuple[EduDriver, EduDriver]


@pytest.mark.long
def test_a_second_address_space_is_refused_and_the_peer_named(pair: Pair, iommufd: IOMMUFD, ioas: IOAS) -> None:
    first, second = pair
    other = iommufd.alloc_ioas()
    first.attach(ioas)
    preview = second.preview_attach(other)
    assert (preview.verdict, preview.changes) == (Verdict.REFUSED, ())
    with pytest.raises(GroupConflictError) as caught:
        second.attach(other)
    assert caught.value.errno == errno.EINVAL
    assert [peer.name for peer in caught.value.peers] == [first.name]
    assert first.name in str(caught.value)
    assert second.page_table is None
    assert second.attach(ioas).kind is ChangeKind.JOIN


@pytest.mark.long
def test_what_an_action_changes_is_the_group(pair: Pair, shared: Group, ioas: IOAS) -> None:
    first, second = pair
    assert set(first.bind_change.devices) == set(shared.devices)
    assert second.bind_change.devices == ()
    assert set(first.preview_attach(ioas).changes) == set(shared.devices)
    assert set(first.attach(ioas).devices) == set(shared.devices)
    assert second.page_table is None


@pytest.mark.long
def test_a_bound_peer_reaches_what_the_attached_one_does(
    pair: Pair, edus: Edus, iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    first, second = pair
    ioas.map(buffer, iova=IOVA)
    assert not arrives(edus[1], buffer)
    first.attach(ioas)
    assert arrives(edus[1], buffer)
    with pytest.raises(GroupConflictError):
        second.attach(iommufd.alloc_ioas())
    assert arrives(edus[0], buffer)
    assert arrives(edus[1], buffer)


@pytest.mark.long
def test_dma_goes_on_until_the_last_one_detaches(
    pair: Pair, edus: Edus, shared: Group, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    first, second = pair
    ioas.map(buffer, iova=IOVA)
    first.attach(ioas)
    assert second.attach(ioas).kind is ChangeKind.JOIN
    assert first.detach().devices == ()
    assert arrives(edus[0], buffer)
    assert set(second.detach().devices) == set(shared.devices)
    assert not arrives(edus[0], buffer)
    assert not arrives(edus[1], buffer)


@pytest.mark.long
def test_a_replace_takes_the_peer_along(
    pair: Pair, edus: Edus, iommufd: IOMMUFD, shared: Group, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    first, second = pair
    other, elsewhere = iommufd.alloc_ioas(), DMABuffer(len(buffer))
    ioas.map(buffer, iova=IOVA)
    other.map(elsewhere, iova=IOVA)
    first.attach(ioas)
    second.attach(ioas)
    assert set(first.replace(other).devices) == set(shared.devices)
    assert second.page_table is other
    assert arrives(edus[1], elsewhere)
    assert not arrives(edus[1], buffer)
