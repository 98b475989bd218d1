"""A type of interrupt of a device, turned on and off as a whole."""

from __future__ import annotations

import contextlib
import errno
import operator
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from pyiommufd import diagnose, uapi
from pyiommufd.errors import Cause, ClosedError, InUseError, IoctlError, UnsupportedError, VectorsUnavailableError
from pyiommufd.iterables import iterate, pairs
from pyiommufd.kernel.interrupts.eventfd import EventFD
from pyiommufd.kernel.interrupts.interrupt import Interrupt, IRQFlag, UnmaskEvent
from pyiommufd.uapi import device_ioctls
from pyiommufd.uapi.ioctls import File

if TYPE_CHECKING:
    from pyiommufd.kernel.device.device import Device
    from pyiommufd.kernel.interrupts.interrupts import Interrupts

_MASK: int = uapi.VFIO_IRQ_SET_ACTION_MASK
_UNMASK: int = uapi.VFIO_IRQ_SET_ACTION_UNMASK
_TRIGGER: int = uapi.VFIO_IRQ_SET_ACTION_TRIGGER
_REQUEST = "VFIO_DEVICE_SET_IRQS"


class _State(NamedTuple):
    """The enabled vectors of a type. Never modified: a change replaces it.

    Attributes:
        vectors: The enabled vectors by their numbers, in order; none: the type is off.
        span: How many vectors the kernel has set up, from 0 on; a NORESIZE type has to be turned off for more.
        unmask: INTx only.
    """

    vectors: Mapping[int, Interrupt]
    span: int
    unmask: UnmaskEvent | None = None

    def events(self) -> list[EventFD]:
        """All eventfds of this state."""
        return [*self.vectors.values(), *([] if self.unmask is None else [self.unmask])]

    def without(self, event: EventFD) -> _State:
        """The same without one of them; with the last vector, the type is off."""
        vectors = {number: vector for number, vector in self.vectors.items() if vector is not event}
        return self._replace(vectors=vectors, unmask=None if self.unmask is event else self.unmask) if vectors else _OFF


_OFF = _State({}, 0)


class IRQ:
    """A type of interrupt of a bound device. Made by `Device.interrupts`.

    INTx, MSI and MSI-X exclude each other: one of the three can be enabled at a time.

    If a signal handler raises during a change, the type is off afterwards, or on with the old or the new vectors, and
    `vectors` says which.

    Thread safety: everything here may be used from any thread.

    Attributes:
        device: The device.
        index: Its number: an `IRQIndex` where the device is a PCI device, an `APIRQIndex` or `CCWIRQIndex` where it is
            one of s390; a plain int where the type has no name.
    """

    __slots__ = ("_events", "_interrupts", "_recorded", "device", "index")

    def __init__(self, interrupts: Interrupts, device: Device, index: int) -> None:
        self._interrupts = interrupts
        # The states by change number; the highest one counts. Its first state is on record; the others are those that
        # the kernel may have until it has answered.
        self._recorded: dict[int, list[_State]] = {0: [_OFF]}
        # Each eventfd that may be open, and whether it has been in a state: none is lost on its way to the record, or
        # from there to its end.
        self._events: dict[EventFD, bool] = {}
        self.device = device
        self.index = index

    @property
    def name(self) -> str:
        """Its name, such as ``MSIX``."""
        return self.index.name if isinstance(self.index, IntEnum) else str(self.index)

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
        return tuple(self._current_state().vectors.values())

    @property
    def enabled(self) -> bool:
        """Whether it is on."""
        return bool(self._current_state().vectors)

    # Enable and disable

    def enable(
        self,
        count: int | None = None,
        *,
        minimum: int | None = None,
        eventfds: Sequence[EventFD | int | None] | None = None,
    ) -> tuple[Interrupt, ...]:
        """Turn it on (VFIO_DEVICE_SET_IRQS).

        Args:
            count: How many vectors, from 0 on, each with an eventfd of its own; 1 when left out.
            minimum: Accept fewer than ``count`` vectors, but at least this many, if no more are available; None:
                all or nothing.
            eventfds: In place of ``count``: what each vector from 0 on is to signal, an eventfd of the caller's such as
                KVM's irqfd, which is never closed here and need not stay open; None: that vector stays off, for `open`.

        Returns:
            The vectors that are on.

        Raises:
            VectorsUnavailableError: Fewer are available; it says how many. None has been enabled.
            InUseError: It is on already; `resize` and `open` are the ways.
            UnsupportedError: The device has no interrupt of this type.
            IoctlError: The kernel refused, such as for another type that is on; `causes` names it.
            ValueError, TypeError: Not a number of vectors that the device has, or not an eventfd.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        if eventfds is not None and count is not None:
            raise TypeError("either a number of vectors, or the eventfds that they are to signal")
        given = None if eventfds is None else list(iterate(eventfds, "eventfds are EventFD objects, fds or None"))
        count = operator.index(1 if count is None else count) if given is None else len(given)
        least = count if minimum is None else operator.index(minimum)
        with self._interrupts._lock:
            state = self._settled_state()
            if state.vectors:
                raise InUseError(f"{self._target} is on already; resize() and open() change its vectors", self.vectors)
            self._check(count)
            if not 1 <= least <= count:
                raise ValueError(f"minimum has to be from 1 to {count} vectors, not {least}")
            new: dict[int, EventFD | int | None] = dict(enumerate([None] * count if given is None else given))
            if given is not None:
                new = {number: eventfd for number, eventfd in new.items() if eventfd is not None}
            if not new:
                raise ValueError(f"all {count} eventfds are None: no vector of {self._target} would be enabled")
            while True:
                try:
                    return self._change(state, (), new, count)
                except VectorsUnavailableError as error:
                    count = error.available
                    new = {number: eventfd for number, eventfd in new.items() if number < count}
                    if count < least or not new:
                        raise

    def open(self, vector: int, eventfd: EventFD | int | None = None) -> Interrupt:
        """Enable one vector, the others staying as they are: one that was closed or left out, or one more.

        Where the type is off, it is turned on with this vector. Where it is NORESIZE and was enabled with too few
        vectors, it is turned off and on: an interrupt in between is lost.

        Args:
            vector: Its number.
            eventfd: What it is to signal, as in ``enable(eventfds=…)``; None: an eventfd of its own.

        Raises:
            InUseError: That vector is on.
            VectorsUnavailableError, UnsupportedError, IoctlError: As for `enable`. It is as it was.
            ValueError, TypeError: The device has no such vector, or it is not an eventfd.
            ClosedError, ForkedError: As for `enable`.
        """
        vector = operator.index(vector)
        with self._interrupts._lock:
            state = self._settled_state()
            if self._check(1) <= vector or vector < 0:
                raise ValueError(f"{self._target} has no vector {vector}")
            if vector in state.vectors:
                raise InUseError(f"{state.vectors[vector]!r} is on already; close() it first", (state.vectors[vector],))
            vectors = self._change(state, state.vectors.values(), {vector: eventfd}, max(state.span, vector + 1))
            return next(one for one in vectors if one.vector == vector)

    def resize(self, count: int) -> tuple[Interrupt, ...]:
        """Have more or fewer vectors; those that stay are the same objects.

        Fewer: those from ``count`` on are closed. More: those after the last one that is on are enabled, each with an
        eventfd of its own; vectors before it that are off stay off. Where the type is NORESIZE and there are to be more
        than it was enabled with, it is turned off and on: an interrupt in between is lost.

        Returns:
            The vectors that are on.

        Raises:
            VectorsUnavailableError: Fewer are available. Nothing has changed.
            ValueError, TypeError: It is off, or that is not a number of vectors that the device has.
            IoctlError, ClosedError, ForkedError: As for `enable`.
        """
        count = operator.index(count)
        with self._interrupts._lock:
            state = self._settled_state()
            self._check(count)
            self._check_enabled()
            new = dict.fromkeys(range(max(state.vectors) + 1, count))
            keep = [vector for number, vector in state.vectors.items() if number < count]
            return self._change(state, keep, new, max(state.span, count))

    def disable(self) -> None:
        """Turn it off. Its vectors are closed. Does nothing where it is off.

        Raises:
            IoctlError: The kernel refused.
            ClosedError, ForkedError: As for `enable`.
        """
        with self._interrupts._lock:
            state = self._settled_state()
            if state.vectors:
                self._change(state, (), {}, 0)

    # Trigger and mask

    def trigger(self, start: int = 0, count: int | None = None) -> None:
        """Signal vectors as the device would, without the device; each that is on exactly once.

        Args:
            start: The first.
            count: How many numbers from there on; None: all.

        Raises:
            ValueError, TypeError: It is off, or none of those, or not all of them, are among its vectors' numbers.
            IoctlError, ClosedError, ForkedError: As for `enable`.
        """
        start = operator.index(start)
        with self._interrupts._lock:
            vectors = self._settled_state().vectors
            self._check_enabled()
            end = max(vectors) + 1
            count = end - start if count is None else operator.index(count)
            if not 0 <= start < start + count <= end or not any(start <= number < start + count for number in vectors):
                raise ValueError(f"{count} from {start} on are not among the vectors of {self!r}")
            self._set(_TRIGGER, start, count)

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
        with self._interrupts._lock:
            self._settled_state()
            self._check_maskable()
            self._set(action, 0, 1)

    def unmask_event(self, eventfd: EventFD | int | None = None) -> UnmaskEvent:
        """An eventfd that does what `unmask` does whenever it is signalled; for KVM, the resample fd. INTx only.

        Args:
            eventfd: The caller's own, as in ``enable(eventfds=…)``; None: one is made.

        Raises:
            InUseError: There is one already.
            UnsupportedError, ValueError, TypeError, IoctlError, ClosedError, ForkedError: As for `mask` and `enable`.
        """
        with self._interrupts._lock:
            state = self._settled_state()
            self._check_maskable()
            if state.unmask is not None:
                raise InUseError(f"{self._target} has an unmask event already", (state.unmask,))
            new: list[EventFD] = []
            try:
                new.append(event := UnmaskEvent(self, eventfd))
                self._events[event] = False
                self._switch(state, state._replace(unmask=event))
            finally:
                self._close_rest(new)
            return event

    # Internal

    @property
    def _target(self) -> str:
        return f"{self.name} of {self.device.name}"

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
        raise diagnose.no_interrupt_error(self.device.name, self.name, there)

    def _check(self, count: int) -> int:
        causes: tuple[Cause, ...] = ()
        try:
            there = self.count
        except IoctlError as error:
            # Of a type that devices of this kind may have, a driver says so: mtty of REQ.
            if error.errno != errno.EINVAL or not isinstance(self.index, IntEnum):
                raise
            there, causes = 0, error.causes
        if not there:
            raise UnsupportedError(_REQUEST, errno.EOPNOTSUPP, f"{self.device.name}, which has no {self.name}", causes)
        if not 1 <= count <= there:
            raise ValueError(f"{self._target} has 1 to {there} vectors, not {count}")
        return there

    def _check_enabled(self) -> None:
        if not self.enabled:
            raise ValueError(f"{self._target} is off; enable() it")

    def _check_maskable(self) -> None:
        if not self.flags & IRQFlag.MASKABLE:
            raise UnsupportedError(_REQUEST, errno.EOPNOTSUPP, f"{self._target}, which cannot be masked")
        self._check_enabled()

    # Internal: changes. The lock is held, except in `_current_state`, and in `_last` and `_states`, which it calls.

    def _last(self) -> tuple[int, list[_State]]:
        """The last change."""
        return max(pairs(self._recorded))

    def _record_change(self, number: int, states: list[_State]) -> bool:
        """Record a change after the one of this number, unless a signal handler has recorded one since."""
        if self._recorded.setdefault(number + 1, states) is not states:
            return False
        if self._recorded.pop(number, None) is None:  # a signal handler has recorded several since
            del self._recorded[number + 1]
            return False
        return True

    @property
    def _states(self) -> list[_State]:
        return self._last()[1]

    def _current_state(self) -> _State:
        """The current state, without the lock: waits for another thread's change, and settles an interrupted one."""
        if len(self._states) > 1:
            with self._interrupts._lock:
                self._settle()
        return self._states[0]

    def _settled_state(self) -> _State:
        """What is on, once what an interrupted change has left is settled. Raises as `Interrupts._live` does."""
        self._interrupts._live()
        self._settle()
        return self._states[0]

    def _change(
        self, before: _State, keep: Iterable[Interrupt], new: Mapping[int, EventFD | int | None], span: int
    ) -> tuple[Interrupt, ...]:
        """Keep some vectors, make new ones on these eventfds, and close the rest. Returns the first two kinds."""
        vectors = {vector.vector: vector for vector in keep}
        try:
            for number, eventfd in new.items():
                vectors[number] = vector = Interrupt(self, number, eventfd)
                self._events[vector] = False
            self._switch(before, _State(dict(sorted(vectors.items())), span, before.unmask) if vectors else _OFF)
        finally:
            self._close_rest(vectors.values())
        return tuple(vectors[number] for number in sorted(vectors))

    def _switch(self, before: _State, wanted: _State) -> None:
        """Switch to this state, in the record and in the kernel; if interrupted, stay in the previous one.

        InUseError: a signal handler has changed it since it was in the first state.
        """
        for event in wanted.events():
            self._events[event] = True
        number, current = self._last()
        attempt = [wanted, before]
        # Each change of a list below is one step, which no signal handler comes between.
        if current != [before] or not self._record_change(number, attempt):
            raise InUseError(f"{self._target} was changed by a signal handler meanwhile", self.vectors)
        try:
            self._apply(before, wanted)
            del attempt[1:]
        except BaseException:
            attempt[:] = [before, wanted]
            raise
        finally:
            theirs = self._states
            if theirs is not attempt:
                # A signal handler has changed or closed it meanwhile, and its change takes precedence.
                theirs.extend((wanted, before))
            self._settle()

    def _settle(self) -> None:
        """Set the kernel to the recorded state, if it may have another one."""
        while len(current := self._states) > 1:
            state, *others = current
            try:
                self._interrupts._live()
            except ClosedError:  # by a signal handler, or it has forked and this is the child
                current[:] = [_OFF]
                continue
            try:
                for other in others:
                    self._apply(other, state, settle=True)
            except (IoctlError, ClosedError):  # the latter where one of its eventfds is closed
                with contextlib.suppress(ClosedError):
                    self._turn_off(settle=True)
                state = _OFF
            theirs = self._states
            if theirs is current:
                current[:] = [state]
            else:  # a signal handler has changed it again, which takes precedence
                theirs.extend((state, *others))
        self._close_rest()

    def _apply(self, before: _State, wanted: _State, *, settle: bool = False) -> None:
        """Bring the kernel from one state to another, or, to settle, from either of them to the second.

        What stays is not touched, unless the type has to be turned off for it.
        """
        anew = not (before.span and wanted.span)
        if not anew and before.span != wanted.span:
            anew = bool(self.flags & IRQFlag.NORESIZE)
        if anew:
            if before.span or settle:
                self._turn_off(settle=settle)
            numbers = range(wanted.span)
        else:
            every = {*before.vectors, *wanted.vectors}
            changed = [number for number in every if before.vectors.get(number) is not wanted.vectors.get(number)]
            numbers = range(min(changed), max(changed) + 1) if changed else range(0)
        if numbers:
            files = [wanted.vectors[number]._live() if number in wanted.vectors else None for number in numbers]
            if available := self._set(_TRIGGER, numbers.start, len(files), files):
                target = f"{self._target}: {len(files)} vectors asked for, {available} available"
                raise VectorsUnavailableError(_REQUEST, errno.ENOSPC, target, available=available)
        if wanted.unmask is not (None if anew else before.unmask):
            self._set(_UNMASK, 0, 1, [None])
            if wanted.unmask is not None:
                self._set(_UNMASK, 0, 1, [wanted.unmask._live()])

    def _turn_off(self, *, settle: bool) -> None:
        try:
            self._set(_TRIGGER, 0, 0)
        except IoctlError:
            if not settle:  # then it may be off
                raise

    def _set(self, action: int, start: int, count: int, eventfds: Sequence[File | None] | None = None) -> int:
        try:
            return device_ioctls.set_irqs(self._interrupts._live(), self.index, action, start, count, eventfds)
        except IoctlError as error:
            others = [
                one.name for one in list(self._interrupts._irqs.values()) if one is not self and one._states[0].vectors
            ]
            raise diagnose.set_irqs_error(error.errno or 0, self._target, self.name, others) from None

    # Close

    def _close_rest(self, made: Iterable[EventFD] = ()) -> None:
        """Close every eventfd that is in no state any more, and of those made by this change that did not get into one.

        Not those that are on their way, of a change that this one's signal handler has interrupted.
        """
        made = list(made)
        with contextlib.ExitStack() as stack:  # all of them, also where one fails
            for event in [event for event, was_on in pairs(self._events) if was_on or event in made]:
                stack.callback(self._close_unused, event)

    def _close_unused(self, event: EventFD) -> None:
        if not any(event in state.events() for state in self._states):
            EventFD.close(event)
            self._events.pop(event, None)

    def _release(self, event: Interrupt | UnmaskEvent) -> None:
        """A vector, or the unmask event, is about to be closed: the kernel is not to use it any more."""
        if event.closed or event.in_child or self.device.closed:
            return
        with self._interrupts._lock:
            state = self._settled_state()
            if event in state.events():
                try:
                    self._switch(state, state.without(event))
                finally:
                    self._close_rest()

    def _close(self) -> None:
        """The device is about to be closed, which turns everything off."""
        off = [_OFF]
        with self._interrupts._lock:
            while not self._record_change(self._last()[0], off):
                pass
            self._close_rest(list(self._events))

    def _close_in_child(self) -> None:
        """Close a forked child's copies of the fds."""
        for event in list(self._events):
            EventFD.close(event)

    def __repr__(self) -> str:
        numbers = [vector.vector for vector in self.vectors]
        # The first and the last vector of each contiguous run.
        starts = [number for number in numbers if number - 1 not in numbers]
        ends = [number for number in numbers if number + 1 not in numbers]
        rows = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
        state = f"{', '.join(rows)} on" if rows else "off"
        return f"<IRQ {self._target}: {state}>"
