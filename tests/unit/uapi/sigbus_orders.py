"""Run by test_window.py in a process of its own: who else handles SIGBUS, in all orders with a window.

    sigbus_orders.py guard            every sequence of steps, and after each step an access that faults
    sigbus_orders.py foreign          after sequences of steps a SIGBUS that is no window's
    sigbus_orders.py after STEP...    the same after these steps, in this process
    sigbus_orders.py kept             the same after an access, with faulthandler as Python was started
    sigbus_orders.py chained LIBRARY  the same after orders in which the handlers of sigbus_chain.c are set

A file that is truncated under its mapping raises SIGBUS as a BAR does whose memory decode is off.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import functools
import itertools
import mmap
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator

from pyiommufd.uapi import device_ioctls, ioctls
from pyiommufd.uapi.fast import Registers

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None)
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.signal.restype = ctypes.c_void_p
_libc_exit = ctypes.cast(_libc._exit, ctypes.c_void_p)
_found: list[int | None] = []


def _truncated() -> int:
    """An fd whose first page can be mapped, and faults."""
    fd = os.memfd_create("truncated")
    os.ftruncate(fd, PAGE)
    return fd


_file = _truncated()
_window = device_ioctls.window_new()


class Accesses(Registers):
    """Those of the window; what is refused is returned."""

    def _refused(self, code: int, offset: int, width: int) -> int:
        return -code


_accesses = Accesses(ioctls.address(_window), _window)


def access() -> None:
    """Map the window where it is not, and have an access fault."""
    if not device_ioctls.window_mapped(_window):
        device_ioctls.window_map(_window, _file, 0, PAGE, readable=True, writeable=True)
        os.ftruncate(_file, 0)
    assert _accesses.read32(0) == -errno.EFAULT
    result: object = _accesses.write32(0, 1)  # type: ignore[func-returns-value]
    assert result == -errno.EFAULT


def set_by_c() -> None:
    """A handler that a C library sets, and that ends the process."""
    _found.append(_libc.signal(signal.SIGBUS, _libc_exit))


def put_back_by_c() -> None:
    """What a C library does that puts back what it has found."""
    if _found:
        _libc.signal(signal.SIGBUS, _found.pop())


# No faulthandler.register: it refuses SIGBUS.
STEPS: dict[str, Callable[[], object]] = {
    "enable": faulthandler.enable,
    "disable": faulthandler.disable,
    "python": lambda: signal.signal(signal.SIGBUS, lambda *_: None),
    "default": lambda: signal.signal(signal.SIGBUS, signal.SIG_DFL),
    "ignore": lambda: signal.signal(signal.SIGBUS, signal.SIG_IGN),
    "set by C": set_by_c,
    "put back by C": put_back_by_c,
}


def guard() -> None:
    """Every sequence, one after the other without a new start: an access that faults never reaches anybody else."""
    for sequence in itertools.product([*STEPS, "access"], repeat=4):
        print(*sequence, sep=", ", flush=True)
        for step in sequence:
            STEPS.get(step, access)()
        access()


def foreign_fault() -> None:
    """A SIGBUS that is no window's."""
    fd = _truncated()
    memory = mmap.mmap(fd, PAGE)
    os.ftruncate(fd, 0)
    memory[0]


def outcome(steps: tuple[str, ...]) -> tuple[int, list[str]]:
    """How a child ends that takes these steps and then faults elsewhere; what faulthandler says then."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if not child:
            try:
                os.dup2(said.fileno(), 2)
                resource.setrlimit(resource.RLIMIT_CPU, (5, 5))  # handlers that call each other for ever
                for step in steps:
                    STEPS.get(step, access)()
                foreign_fault()
            finally:
                os._exit(99)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return status, [line.rstrip() for line in said if line.startswith(("Fatal", "Current thread", "Extension"))]


def well_formed(length: int) -> Iterator[tuple[str, ...]]:
    """Sequences in which handlers are restored in reverse order of being set: others fail without a window as well."""
    off = {"enable": "disable", "set by C": "put back by C"}
    for sequence in itertools.product([*off, *off.values(), "access"], repeat=length):
        on: list[str] = []
        for step in sequence:
            if step in off and step not in on:
                on.append(step)
            elif on and off[on[-1]] == step:
                on.pop()
            elif step != "access":
                break
        else:
            yield sequence


def foreign() -> None:
    """A SIGBUS that is no window's ends as it would without a window."""
    known: dict[tuple[str, ...], tuple[int, list[str]]] = {}
    for sequence in itertools.chain.from_iterable(map(well_formed, range(1, 6))):
        if "access" not in sequence:
            continue
        without = tuple(step for step in sequence if step != "access")
        if without not in known:
            known[without] = outcome(without)
        print(*sequence, known[without][0], sep=", ", flush=True)
        found = outcome(sequence)
        assert found == known[without], (sequence, found, known[without])


def chained(library: str) -> None:
    """A SIGBUS that is no window's ends the process, though handlers forward to those that they have found.

    While both are set aside an access finds none; once they are back they forward to what an access has set before.
    """
    handlers = ctypes.CDLL(library)
    first, second = (functools.partial(handlers.set_chained, which) for which in (0, 1))
    STEPS.update({"first": first, "second": second, "aside": handlers.set_aside, "back": handlers.put_back})
    for before in itertools.product(["access", "enable", "default"], repeat=2):
        for between in ([], ["access"]):
            steps = [*before, "access", "first", *between, "second", *between, "aside", "access", "back", "access"]
            print(*steps, sep=", ", flush=True)
            status, _ = outcome(tuple(steps))
            assert os.WTERMSIG(status) == signal.SIGBUS, (steps, status)


def main() -> None:
    """Run the mode given on the command line; see the module."""
    mode, *steps = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if mode == "kept":
        access()
        foreign_fault()
    faulthandler.disable()
    if mode == "guard":
        guard()
    elif mode == "foreign":
        foreign()
    elif mode == "chained":
        chained(*steps)
    else:
        for step in steps:
            STEPS.get(step, access)()
        foreign_fault()


if __name__ == "__main__":
    main()
