"""Whole rounds, a thousand times and with every step made to fail: what a round takes, it gives back."""

from __future__ import annotations

import errno
import gc
import os
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pyiommufd import IOMMUFD, Claim, DeviceFile, DMABuffer, HostDevice
from pyiommufd._uapi import lib
from pyiommufd.testing.checks.leaks import LeakCheck
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.uapi import device_ioctls, fast, ioctls
from tests.guest.dma import IOVA
from tests.sweeps import amount, sample

PAGE = 4096


def one_round(iommufd: IOMMUFD, host: HostDevice, buffer: DMABuffer, *, dma: bool = False) -> None:
    """Open, bind, attach, map, use, unmap, detach, close; everything explicitly, and by `with` where a step fails."""
    with ExitStack() as stack:
        file = stack.enter_context(DeviceFile(host))
        device = stack.enter_context(iommufd.bind(file))
        ioas = iommufd.alloc_ioas()
        stack.callback(ioas.close)
        stack.callback(lambda: None if device.closed else device.detach())
        device.attach(ioas)
        mapping = stack.enter_context(ioas.map(buffer, iova=IOVA))
        many = stack.enter_context(ioas.map_many(buffer, [(0, PAGE, 2 * IOVA), (PAGE, PAGE, None)]))
        copy = stack.enter_context(ioas.copy_from(ioas, IOVA, PAGE * 2, dst_iova=3 * IOVA))
        window = stack.enter_context(device.region(0).map())
        assert window.read32(0) & 0xFF == 0xED
        with device.region(0).ioeventfd(0x04, 4, 1):
            pass
        (msi,) = device.interrupts.msi.enable()
        msi.trigger()
        assert msi.take() == 1
        device.interrupts.msi.disable()
        device.bus_master = True
        if dma:
            buffer[:8] = b"round   "
            with EduDriver(device) as edu:
                edu.copy_in(IOVA, 8)
                edu.copy_out(2 * IOVA + 8, 8)
            assert buffer[8:16] == b"round   "
        window.close()
        for one in (copy, many, mapping):
            one.unmap()
        device.detach()
        ioas.close()
        device.close()


def resident() -> int:
    """The memory of this process that is neither a file nor shared, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


def map_count() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.long
def test_a_thousand_rounds_leave_nothing(claimed_alone: Claim, iommufd: IOMMUFD, alone: HostDevice) -> None:
    buffer = DMABuffer(2 * PAGE)
    every = amount("stress.rounds", 1000, 200)
    seen, traced = every * 8 // 10, max(every // 10, 50)

    def rounds(count: int) -> None:
        for number in range(count):
            one_round(iommufd, alone, buffer, dma=number % 50 == 0)
        gc.collect()

    # Imports, caches and the allocator's arenas come with the first rounds.
    rounds(every // 10)
    fds, maps, rss = len(os.listdir("/proc/self/fd")), map_count(), resident()  # noqa: PTH208
    with LeakCheck(iommufd):
        rounds(seen)
        assert len(os.listdir("/proc/self/fd")) == fds  # noqa: PTH208
        # A page kept for each round would be twice as much, and one mapping each many times; the allocator's own
        # breathing is some hundreds of KiB in 800 rounds and a few mappings.
        assert resident() - rss < seen * PAGE // 1024 // 2
        assert map_count() - maps < 16
        # Under tracemalloc, which takes several times as long, fewer.
        tracemalloc.start()
        try:
            rounds(2)
            before, _ = tracemalloc.get_traced_memory()
            rounds(traced)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # The smallest object that a round could leave is 64 bytes in a list or dict. What is seen are a few hundred bytes
    # in all: the sizes of dicts and free lists at the moment.
    assert after - before < 40 * traced
    # Of what is mapped nothing is left: the buffer can go.
    buffer.close()


class Interrupt(BaseException):
    """Raised by a signal handler, as KeyboardInterrupt is."""


class Injection:
    """Counts the calls that the library makes into the kernel, and makes the one with a given number fail.

    The calls are those of the extension. A call that fails returns the negative errno without having reached the
    kernel: as the kernel would have answered.
    """

    # Calls that do not enter the kernel.
    PASS = frozenset(
        {
            "abandon",
            "any_mapped",
            "file_forked",
            "file_same",
            "file_wait",
            "window_new",
            "window_free",
        }
    )

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail_at = -1
        self.fail: Callable[[str, Callable[[], object]], object] = self.by_errno

    def by_errno(self, name: str, call: Callable[[], object]) -> object:
        """The call answers ENOMEM."""
        if name == "file_close":
            call()  # the kernel closes, whatever it answers
        return (-errno.ENOMEM, 0, PAGE) if name == "ioas_map" else -errno.ENOMEM

    def by_signal(self, name: str, call: Callable[[], object]) -> object:
        """A signal handler raises when the call has done its work, before anybody sees the result."""
        result = call()
        signal.raise_signal(signal.SIGUSR1)
        return result

    def wrap(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        """The function with the injection in front."""

        def wrapper(*arguments: Any, **keywords: Any) -> object:
            # Unmapped or closed already: the kernel is not asked. A file that is freed has been closed.
            if (name == "ioas_unmap" and not arguments[0]._state) or (name == "file_close" and arguments[0].fd < 0):
                return real(*arguments, **keywords)
            number = len(self.calls)
            self.calls.append(name)
            if number == self.fail_at:
                return self.fail(name, lambda: real(*arguments, **keywords))
            return real(*arguments, **keywords)

        return wrapper


class _Lib:
    """The extension's functions, with an injection before each."""

    def __init__(self, real: Any, injection: Injection) -> None:
        self._real = real
        self._injection = injection

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        short = name.removeprefix("pyiommufd_")
        if short == name or short in Injection.PASS:
            return value
        return self._injection.wrap(short, value)


@pytest.fixture
def injection() -> Iterator[Injection]:
    """The library with its calls counted, between `inject` and the end of the test."""
    injection = Injection()

    def handler(number: int, frame: FrameType | None) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, handler)
    yield injection
    signal.signal(signal.SIGUSR1, before)


@contextmanager
def inject(injection: Injection) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Those that are written by hand, and call C by themselves.
        for kind, name in ((fast.Mapper, "map"), (fast.Mapping, "_unmap")):
            patch.setattr(kind, name, injection.wrap(f"ioas_{name.strip('_')}", getattr(kind, name)))
        for module in (ioctls, device_ioctls):
            patch.setattr(module, "lib", _Lib(lib, injection))
        yield


@pytest.mark.long
@pytest.mark.parametrize("how", ["errno", "signal"])
def test_every_step_may_fail(
    claimed: Claim, iommufd: IOMMUFD, first: HostDevice, injection: Injection, how: str
) -> None:
    buffer = DMABuffer(2 * PAGE)
    one_round(iommufd, first, buffer)
    with inject(injection):
        one_round(iommufd, first, buffer)
    steps = list(injection.calls)
    # As many as a round has of them, so that a step the library no longer takes this way is missed here.
    assert {"bind", "make", "attach", "ioas_map", "ioas_map_many", "ioas_copy", "window_map"} <= set(steps)
    assert {"window_unmap", "ioas_unmap", "ioas_unmap_many", "detach", "destroy", "ioctl"} <= set(steps)
    assert {"file_open", "file_close", "file_read", "file_change16"} <= set(steps)
    injection.fail = injection.by_errno if how == "errno" else injection.by_signal
    check = LeakCheck(iommufd)
    for number, step in sample(f"stress.rounds[{how}]", enumerate(steps), 12):
        injection.calls.clear()
        injection.fail_at = number
        failure: BaseException | None = None
        with inject(injection):
            try:
                one_round(iommufd, first, buffer)
            except (Interrupt, OSError, Exception) as error:
                failure = error
        where = f"{how} at call {number}, {step}: {failure!r}"
        assert failure is not None, where
        assert injection.calls[number] == step, where
        chain = set()
        link: BaseException | None = failure
        while link is not None:
            chain.add(type(link))
            link = link.__cause__ or link.__context__
        if how == "errno":
            assert isinstance(failure, Exception), where
        else:
            assert Interrupt in chain, where
        # What could not be closed is still known, and can be now.
        for left in iommufd.objects:
            left.close()
        assert iommufd.objects == (), where
        failure = link = None
        assert check.leaks() == [], where
        one_round(iommufd, first, buffer)
    buffer.close()


def test_interrupted_open_of_an_iommufd_leaves_no_fd(injection: Injection) -> None:
    check = LeakCheck()
    for how in (injection.by_errno, injection.by_signal):
        injection.fail = how
        injection.calls.clear()
        injection.fail_at = 0
        with inject(injection), pytest.raises((OSError, Interrupt)):
            IOMMUFD()
        assert check.leaks() == []
