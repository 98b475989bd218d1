"""Failures on demand: the n-th allocation that the kernel makes for the library's calls in this thread fails.

It takes a kernel with CONFIG_FAULT_INJECTION and CONFIG_FAILSLAB, and root. The counter is the thread's own,
``/proc/thread-self/fail-nth``; C sets it before each call and reads it after it (pyiommufd/uapi/injection.c). What may
fail is set for the whole machine, under debugfs, and put back afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pyiommufd.errors import IoctlError, IOMMUFDError
from pyiommufd.uapi import ioctls

_DEBUGFS = Path("/sys/kernel/debug")

# By default only allocations that may not sleep fail, which are few.
_SETTINGS = {"failslab/ignore-gfp-wait": "N", "fail_page_alloc/ignore-gfp-wait": "N"}


class InjectionMissingError(IOMMUFDError):
    """This kernel cannot be told to fail, or the caller may not tell it."""


class FailNth:
    """One injected failure: the value of `fail_nth`'s ``with`` block.

    Attributes:
        number: Which allocation was to fail.
        injected: Whether it did, known after the block; if not, the block made fewer allocations than that.
        points: How many allocations the block made up to then, known after the block: of a number that it does not come
            to, all that can fail.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.injected = False
        self.points = 0

    def __repr__(self) -> str:
        return f"<FailNth {self.number}{' injected' if self.injected else ''}>"


@contextlib.contextmanager
def fail_nth(number: int, *, verbose: bool = False) -> Iterator[FailNth]:
    """Have one allocation fail, counted from the start of the block, of all that the kernel makes for the library.

    What counts are the allocations within this thread's opens, ioctls, reads, writes and mmaps that the library issues,
    one after the other; not those for Python's own system calls, nor for those of other threads. A kernel with
    CONFIG_IOMMUFD_TEST has more such points, which count as well. What an allocation fails with is mostly ENOMEM, and
    nothing at all where the kernel gets around it; iommufd's own points with ENOENT (an object is not found), EINVAL or
    EFAULT (memory cannot be pinned)::

        with fail_nth(1_000_000) as counted:
            iommufd.alloc_ioas()
        print(counted.points)

    Args:
        number: Which one, from 1 on.
        verbose: Let the kernel log each failure with its stack. `Dmesg.expect` it: ``FAULT_INJECTION``.

    Raises:
        InjectionMissingError: The kernel was built without it, debugfs is not mounted, or the caller is not root.
        ValueError: The number is not positive or does not fit 32 bits, or the block is in another one of this thread.
    """
    if not 1 <= number < 1 << 32:
        raise ValueError(f"allocations are counted from 1 up to 32 bits, not {number}")
    with _settings(verbose):
        failure, outer = FailNth(number), False
        try:
            try:
                ioctls.injection_begin(number)
            except IoctlError as error:
                if outer := error.errno == errno.EALREADY:
                    raise ValueError("this thread is in a block of fail_nth already") from None
                raise InjectionMissingError(f"{error}; it takes CONFIG_FAULT_INJECTION and root") from None
            yield failure
        finally:
            if not outer:
                left = ioctls.injection_end()
                failure.injected, failure.points = left == 0, number - left


def _after_fork_in_child() -> None:
    # Its counter is the parent's.
    ioctls.injection_end()


os.register_at_fork(after_in_child=_after_fork_in_child)


def fail_each(*, limit: int = 1000, verbose: bool = False) -> Iterator[contextlib.AbstractContextManager[FailNth]]:
    """Have every allocation of a block fail once, one a round, until a round gets through without a failure.

        for attempt in fail_each():
            with attempt, contextlib.suppress(OSError, MemoryError):
                ...

    Args:
        limit: So many rounds at most.
        verbose: As for `fail_nth`.

    Raises:
        InjectionMissingError: As for `fail_nth`.
        AssertionError: The limit was reached: the block does not end, or makes more allocations.
    """
    for number in range(1, limit + 1):
        last: list[FailNth] = []
        yield _remember(number, verbose, last)
        if not last:
            raise ValueError("each round of fail_each is a context manager: enter it")
        if not last[0].injected:
            return
    raise AssertionError(f"after {limit} rounds there are still allocations left to fail")


@contextlib.contextmanager
def _remember(number: int, verbose: bool, last: list[FailNth]) -> Iterator[FailNth]:
    with fail_nth(number, verbose=verbose) as failure:
        last.append(failure)
        yield failure


@contextlib.contextmanager
def _settings(verbose: bool) -> Iterator[None]:
    """What may fail, and whether the kernel logs it; as they were afterwards."""
    if not (_DEBUGFS / "failslab").is_dir():
        why = "it takes a kernel with CONFIG_FAILSLAB and CONFIG_FAULT_INJECTION_DEBUG_FS, debugfs mounted, and root"
        raise InjectionMissingError(f"there is no {_DEBUGFS / 'failslab'}: {why}")
    wanted = {_DEBUGFS / name: value for name, value in _SETTINGS.items() if (_DEBUGFS / name).exists()}
    wanted |= dict.fromkeys(_DEBUGFS.glob("fail*/verbose"), "2" if verbose else "0")
    before = {path: path.read_text().strip() for path in wanted}
    try:
        for path, value in wanted.items():
            path.write_text(value)
        yield
    finally:
        for path, value in before.items():
            path.write_text(value)
