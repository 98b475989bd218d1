"""Two devices that share a group: whatever one does, the other's DMA goes along."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyiommufd import IOAS, IOMMUFD, ChangeKind, Device, DMABuffer, Group, GroupConflictError, Verdict
from pyiommufd.testing.edu import EduDriver

IOVA = 0x100000

Arrives = Callable[[EduDriver, DMABuffer], bool]
Pair = tuple[Device, Device]
Edus = tuple[EduDriver, EduDriver]


def test_a_second_address_space_is_refused_and_the_peer_named(
    pair: Pair, edus: Edus, iommufd: IOMMUFD, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    first, second = pair
    other = iommufd.alloc_ioas()
    ioas.map(buffer, iova=IOVA)
    first.attach(ioas)
    preview = second.preview_attach(other)
    assert (preview.verdict, preview.changes) == (Verdict.REFUSED, ())
    with pytest.raises(GroupConflictError) as caught:
        second.attach(other)
    assert [peer.name for peer in caught.value.peers] == [first.name]
    assert first.name in str(caught.value)
    assert arrives(edus[0], buffer)


def test_a_bound_peer_reaches_what_the_attached_one_does(
    pair: Pair, edus: Edus, shared: Group, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    first, second = pair
    assert set(first.bind_change.devices) == set(shared.devices)
    assert second.bind_change.devices == ()
    ioas.map(buffer, iova=IOVA)
    assert not arrives(edus[1], buffer)
    change = first.attach(ioas)
    assert set(change.devices) == set(shared.devices)
    assert second.page_table is None
    assert arrives(edus[1], buffer)


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
