"""What the fixtures `claim` and `bind` are."""

from __future__ import annotations

from typing import Protocol

from pyiommufd import Device, HostDevice


class Claimer(Protocol):
    def __call__(self, vendor: int, device: int, place: int = 0) -> HostDevice:
        """Of several devices with these ids the one at that place, by address."""


class Binder(Protocol):
    def __call__(self, vendor: int, device: int, place: int = 0) -> Device:
        """As `Claimer`."""
