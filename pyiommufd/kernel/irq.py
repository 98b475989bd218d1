"""A type of interrupt of a device, turned on and off as a whole."""

from __future__ import annotations

import contextlib
import errno
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import uapi
from ..diagnose.device_requests import no_interrupt_error
from ..diagnose.interrupts import set_irqs_error
from ..errors import InUseError, IoctlError, UnsupportedError, VectorsUnavailableError
from ..uapi import device_ioctls
from ..uapi.ioctls import File
from .eventfd import EventFD
from .interrupt import Interrupt, IRQFlag, IRQIndex, UnmaskEvent

if TYPE_CHECKING:
    from .device import Device
    from .interrupts import Interrupts

_MASK: int = uapi.VFIO_IRQ_SET_ACTION_MASK
_UNMASK: int = uapi.VFIO_IRQ_SET_ACTION_UNMASK
_TRIGGER: int = uapi.VFIO_IRQ_SET_ACTION_TRIGGER
_REQUEST = "VFIO_DEVICE_SET_IRQS"


class IRQ:
    """A type of interrupt of a bound device. Made by `Device.interrupts`.

    INTx, MSI and MSI-X exclude each other: one of the three can be enabled at a time.

    Thread safety: everything here may be used from any thread.

    Attributes:
        device: The device.
        index: Its number: an `IRQIndex` where the device is a PCI device.
    """

    __slots__ = ("_interrupts", "_unmask", "_vectors", "device", "index")

    def __init__(self, interrupts: Interrupts, device: Device, index: int) -> None:
        self._interrupts = interrupts
        self._vectors: tuple[Interrupt, ...] = ()
        self._unmask: UnmaskEvent | None = None
        self.device = device
        self.index = index

    @property
    def name(self) -> str:
        """Its name, such as ``MSIX``."""
        return self.index.name if isinstance(self.index, IRQIndex) else str(self.index)

    @property
    def count(self) -> int:
        """How many interrupts of this type the device has (VFIO_DEVICE_GET_IRQ_INFO); 0: none.

        Raises:
            IoctlError: EINVAL: there is no such type; `causes` names those that there are.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        return self._info()[1]

    @property
    def flags(self) -> IRQFlag:
        """What can be done with it. Raises as `count` does."""
        return IRQFlag(self._info()[0])

    @property
    def vectors(self) -> tuple[Interrupt, ...]:
        """Those that are enabled, in the order of their numbers; none where it is off."""
        return self._vectors

    @property
    def enabled(self) -> bool:
        """Whether it is on."""
        return bool(self._vectors)

    # On and off

    def enable(self, count: int = 1, *, minimum: int | None = None) -> tuple[Interrupt, ...]:
        """Turn it on (VFIO_DEVICE_SET_IRQS).

        Args:
            count: How many vectors, from 0 on.
            minimum: Be content with fewer than ``count``, but not than this, where no more are to be had; None:
                all or nothing.

        Returns:
            The vectors.

        Raises:
            VectorsUnavailableError: Fewer are to be had; it says how many. None has been enabled.
            InUseError: It is on already; `resize` is the way.
            UnsupportedError: The device has no interrupt of this type.
            IoctlError: The kernel refused, such as for another type that is on; `causes` names it.
            ValueError, TypeError: Not a number of vectors that the device has.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        count = operator.index(count)
        least = count if minimum is None else operator.index(minimum)
        with self._interrupts.lock:
            fd = self._interrupts.fileno()
            if self._vectors:
                raise InUseError(f"{self!r} is on already; resize() changes the number of vectors", self._vectors)
            self._check(count)
            if not 1 <= least <= count:
                raise ValueError(f"at least {least} of {count} vectors is no choice")
            try:
                self._add(count)
                while available := self._set(fd, 0, self._vectors):
                    if available < least:
                        raise self._unavailable(available)
                    self._drop(available)
            except BaseException:
                # Also where a signal handler raised after the kernel had enabled them.
                with contextlib.suppress(IoctlError):
                    device_ioctls.set_irqs(fd, self.index, _TRIGGER, 0, 0)
                self._drop(0)
                raise
            return self._vectors

    def resize(self, count: int) -> tuple[Interrupt, ...]:
        """Have more or fewer vectors; those that stay are the same objects.

        Where the type is NORESIZE and there are to be more, it is turned off and on: an interrupt in between is lost.

        Returns:
            The vectors, from 0 on.

        Raises:
            VectorsUnavailableError: Fewer are to be had. It is as it was.
            ValueError, TypeError: It is off, or that is not a number of vectors that the device has.
            IoctlError, ClosedError, ForkedError: As for `enable`.
        """
        count = operator.index(count)
        with self._interrupts.lock:
            fd = self._interrupts.fileno()
            self._check(count)
            self._check_enabled()
            before = len(self._vectors)
            if count < before:
                self._bind(fd, _TRIGGER, count, [-1] * (before - count))
                self._drop(count)
            elif count > before:
                self._grow(fd, before, count)
            return self._vectors

    def _grow(self, fd: File, before: int, count: int) -> None:
        self._add(count - before)
        restart = bool(self.flags & IRQFlag.NORESIZE)
        try:
            if restart:
                device_ioctls.set_irqs(fd, self.index, _TRIGGER, 0, 0)
            available = self._set(fd, 0 if restart else before, self._vectors)
            if available:
                raise self._unavailable(available)
        except BaseException:
            self._drop(before)
            if restart:
                restored = False
                with contextlib.suppress(IoctlError):
                    restored = not self._set(fd, 0, self._vectors)
                if not restored:
                    self._drop(0)
            raise

    def disable(self) -> None:
        """Turn it off. Its vectors are closed. Does nothing where it is off.

        Raises:
            IoctlError: The kernel refused.
            ClosedError, ForkedError: As for `enable`.
        """
        with self._interrupts.lock:
            fd = self._interrupts.fileno()
            if self._vectors:
                device_ioctls.set_irqs(fd, self.index, _TRIGGER, 0, 0)
                self._drop(0)

    # What can be done with it meanwhile

    def trigger(self, start: int = 0, count: int | None = None) -> None:
        """Signal vectors as the device would, without the device; each exactly once.

        Args:
            start: The first.
            count: How many; None: all from there.

        Raises:
            ValueError, TypeError: It is off, or those are not among its vectors.
            IoctlError, ClosedError, ForkedError: As for `enable`.
        """
        start = operator.index(start)
        with self._interrupts.lock:
            fd = self._interrupts.fileno()
            self._check_enabled()
            count = len(self._vectors) - start if count is None else operator.index(count)
            if start < 0 or count < 1 or start + count > len(self._vectors):
                raise ValueError(f"{count} from {start} on are not among the {len(self._vectors)} vectors of {self!r}")
            device_ioctls.set_irqs(fd, self.index, _TRIGGER, start, count)

    def mask(self) -> None:
        """Hold the interrupt back until `unmask`. INTx only.

        Raises:
            UnsupportedError: This type cannot be masked.
            ValueError: It is off.
            IoctlError, ClosedError, ForkedError: As for `enable`.
        """
        self._set_mask(_MASK)

    def unmask(self) -> None:
        """Let the interrupt come again: after `mask`, or after it came, which masks it. INTx only.

        Where the device still asserts it, it comes at once. Raises as `mask` does.
        """
        self._set_mask(_UNMASK)

    def _set_mask(self, action: int) -> None:
        with self._interrupts.lock:
            fd = self._interrupts.fileno()
            self._check_maskable()
            device_ioctls.set_irqs(fd, self.index, action, 0, 1)

    def unmask_event(self) -> UnmaskEvent:
        """An eventfd that does what `unmask` does whenever it is signalled; for KVM, the resample fd. INTx only.

        Raises:
            InUseError: There is one already.
            UnsupportedError, ValueError, IoctlError, ClosedError, ForkedError: As for `mask`.
        """
        with self._interrupts.lock:
            fd = self._interrupts.fileno()
            self._check_maskable()
            if self._unmask is not None:
                raise InUseError(f"{self!r} has an unmask event already", (self._unmask,))
            self._unmask = event = UnmaskEvent(self)
            try:
                self._bind(fd, _UNMASK, 0, [event.fileno()])
            except BaseException:
                with contextlib.suppress(IoctlError):
                    self.release_unmask(event)
                EventFD.close(event)
                raise
            return event

    # Steps of the above

    def _info(self) -> tuple[int, int]:
        fd = self.device._live()
        try:
            return device_ioctls.irq_info(fd, self.index)
        except IoctlError as error:
            if error.errno != errno.EINVAL:
                raise
        there = []
        for number in range(self.device.info().num_irqs):
            with contextlib.suppress(IoctlError):
                if device_ioctls.irq_info(fd, number)[1]:
                    there.append(self._interrupts[number].index)
        raise no_interrupt_error(self.device.name, self.name, there)

    def _check(self, count: int) -> None:
        there = self.count
        if not there:
            raise UnsupportedError(_REQUEST, errno.EOPNOTSUPP, f"{self.device.name}, which has no {self.name}")
        if not 1 <= count <= there:
            raise ValueError(f"{self!r} has 1 to {there} vectors, not {count}")

    def _check_enabled(self) -> None:
        if not self._vectors:
            raise ValueError(f"{self!r} is off; enable() it")

    def _check_maskable(self) -> None:
        if not self.flags & IRQFlag.MASKABLE:
            raise UnsupportedError(_REQUEST, errno.EOPNOTSUPP, f"{self!r}, which cannot be masked")
        self._check_enabled()

    def _unavailable(self, available: int) -> VectorsUnavailableError:
        target = f"{self!r}: {len(self._vectors)} vectors asked for, {available} available"
        return VectorsUnavailableError(_REQUEST, errno.ENOSPC, target, available=available)

    def _add(self, count: int) -> None:
        for _ in range(count):
            self._vectors = (*self._vectors, Interrupt(self, len(self._vectors)))

    def _drop(self, keep: int) -> None:
        dropped, self._vectors = self._vectors[keep:], self._vectors[:keep]
        with contextlib.ExitStack() as stack:  # all of them, also where one fails
            for vector in dropped:
                stack.callback(EventFD.close, vector)
            if not keep and self._unmask is not None:
                event, self._unmask = self._unmask, None
                stack.callback(EventFD.close, event)

    def _set(self, fd: File, start: int, vectors: Sequence[Interrupt]) -> int:
        return self._bind(fd, _TRIGGER, start, [-1 if one.closed else one.fileno() for one in vectors[start:]])

    def _bind(self, fd: File, action: int, start: int, eventfds: Sequence[int]) -> int:
        try:
            return device_ioctls.set_irqs(fd, self.index, action, start, len(eventfds), eventfds)
        except IoctlError as error:
            others = [one.name for one in self._interrupts.enabled if one is not self]
            raise set_irqs_error(error.errno or 0, repr(self), self.name, others) from None

    def release(self, vector: Interrupt) -> None:
        """A vector is about to be closed: the kernel is not to signal it any more."""
        if vector.closed or vector.in_child or self.device.closed:
            return
        with self._interrupts.lock:
            if vector in self._vectors:
                if len(self._vectors) == 1:
                    self.disable()
                else:
                    self._bind(self._interrupts.fileno(), _TRIGGER, vector.vector, [-1])

    def release_unmask(self, event: UnmaskEvent) -> None:
        """The unmask event is about to be closed."""
        if event.in_child or self.device.closed:
            return
        with self._interrupts.lock:
            if event is self._unmask:
                self._unmask = None
                self._bind(self._interrupts.fileno(), _UNMASK, 0, [-1])

    def close(self) -> None:
        """The device is about to be closed, which turns everything off."""
        with self._interrupts.lock:
            self._drop(0)

    def close_in_child(self) -> None:
        """Close a forked child's copies of the fds."""
        for event in (*self._vectors, self._unmask):
            if event is not None:
                EventFD.close(event)

    def __repr__(self) -> str:
        return f"<IRQ {self.name} of {self.device.name}>"
