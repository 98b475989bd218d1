"""The idle machine stays claimable: each device that nothing uses is taken, used and given back."""

from __future__ import annotations

import pytest

from pyiommufd import HostDevice
from tests.guest.idle import take_each_idle_device


@pytest.mark.long
def test_each_idle_device(first: HostDevice, peer: HostDevice, neighbour: HostDevice, alone: HostDevice) -> None:
    claimed, moved = take_each_idle_device()
    assert {first.name, peer.name, neighbour.name, alone.name} <= set(claimed)
    assert {first.name, peer.name, alone.name} <= set(moved)
