"""Failures on demand: the n-th allocation that the kernel makes for this thread fails.

It takes a kernel with CONFIG_FAULT_INJECTION and CONFIG_FAILSLAB, and root. The counter is the thread's own, in
``/proc/thread-self/fail-nth``; what may fail is set for the whole machine, under debugfs, and put back afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pyiommufd.errors import IOMMUFDError

_DEBUGFS = Path("/sys/kernel/debug")
_COUNTER = "/proc/thread-self/fail-nth"

# By default only allocations that may not sleep fail, which are few.
_SETTINGS = {"failslab/ignore-gfp-wait": "N", "fail_page_alloc/ignore-gfp-wait": "N"}


class InjectionMissingError(IOMMUFDError):
    """This kernel cannot be told to fail, or the caller may not tell it."""


class FailNth:
    """One injected failure: the value of `fail_nth`'s ``with`` block.

    Attributes:
        number: Which allocation was to fail.
        injected: Whether it did, known after the block; if not, the block made fewer allocations than that.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.injected = False

    def __repr__(self) -> str:
        return f"<FailNth {self.number}{' injected' if self.injected else ''}>"


@contextlib.contextmanager
def fail_nth(number: int, *, verbose: bool = False) -> Iterator[FailNth]:
    """Have one allocation fail, counted from the start of the block, of all that the kernel makes for this thread.

    Python's own system calls count, too: keep the block to the calls that are tested, and make objects and files
    before. What fails is mostly ENOMEM, and may be a `MemoryError`.

    Args:
        number: Which one, from 1 on.
        verbose: Let the kernel log each failure with its stack. `Dmesg.expect` it: ``FAULT_INJECTION``.

    Raises:
        InjectionMissingError: The kernel was built without it, debugfs is not mounted, or the caller is not root.
        ValueError: The number is not positive.
    """
    if number < 1:
        raise ValueError(f"allocations are counted from 1, not {number}")
    with _settings(verbose):
        try:
            counter = os.open(_COUNTER, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise InjectionMissingError(f"{error}; it takes CONFIG_FAULT_INJECTION and root") from None
        failure = FailNth(number)
        text, off = str(number).encode(), b"0"
        try:
            os.pwrite(counter, text, 0)
            try:
                yield failure
            finally:
                failure.injected = _stop(counter, off)
        finally:
            os.close(counter)


def _stop(counter: int, off: bytes) -> bool:
    """Stop counting. Returns whether the failure had happened by then."""
    try:
        left = os.pread(counter, 16, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        left = b"1"  # this very read has failed, by injection, so that the block's calls had not
    try:
        os.pwrite(counter, off, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        os.pwrite(counter, off, 0)
        left = b"1"
    return int(left) == 0


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
