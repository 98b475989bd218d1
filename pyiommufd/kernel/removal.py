"""Letting a device go when the host wants it back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..errors import ClosedError

if TYPE_CHECKING:
    from .vfio_device import VFIODevice


class RemovalWatch:
    """Waits, in a thread of its own, for the host to want a device back. Made by `Device.watch_removal`.

    A context manager that ends the watch; so does closing the device.
    """

    __slots__ = ("_callback", "_device", "_request", "_thread")

    def __init__(self, device: VFIODevice, callback: Callable[[VFIODevice], object] | None) -> None:
        if callback is not None and not callable(callback):
            raise TypeError(f"{callback!r} cannot be called")
        self._device = device
        self._callback = callback
        (self._request,) = device.interrupts.req.enable()
        # A program that ends is not kept from it.
        self._thread = threading.Thread(target=self._run, name=f"pyiommufd-removal-{device.name}", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self.close()
            raise

    def _run(self) -> None:
        try:
            self._request.wait()
        except ClosedError:
            return
        try:
            if self._callback is not None:
                self._callback(self._device)
        finally:
            self._device.close()

    def close(self) -> None:
        """Watch no more. A callback that runs is not waited for. Does nothing the second time."""
        if not self._request.closed:
            self._request.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
