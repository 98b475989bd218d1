"""Failures on demand: what counts for them, and what they do to single calls."""

from __future__ import annotations

import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyiommufd import IOAS, DMABuffer, IoctlError
from pyiommufd.testing.checks.leaks import LeakCheck
from pyiommufd.testing.mock import InjectionMissingError, MockDevice, MockIOMMUFD, commands, fail_each, fail_nth
from tests.by_id import destroy

IOVA = commands.APERTURE_START + 0x10000
PAGE = 4096


def map_once(iommufd: MockIOMMUFD, ioas: IOAS, buffer: DMABuffer) -> int:
    """Map memory with every step failing once; the number of rounds.

    Some failures the kernel gets around, by smaller pieces or another way: either all is mapped, or nothing.
    """
    rounds = failed = 0
    for attempt in fail_each():
        rounds += 1
        mapping = None
        with attempt as failure, contextlib.suppress(IoctlError):
            mapping = ioas.map(buffer, iova=IOVA)
        if mapping is None:
            failed += 1
            assert ioas.mappings == ()
        else:
            assert mapping.iova == IOVA
            assert iommufd.pinned(buffer, 1)
            assert ioas.unmap_all() == len(buffer)
        assert iommufd.pinned(buffer, 0)
        assert ioas.unmap_all() == 0
    assert not failure.injected
    assert failed > 3
    return rounds


def test_every_failure_of_a_map_leaves_nothing(iommufd: MockIOMMUFD, ioas: IOAS, device: MockDevice) -> None:
    buffer = DMABuffer(64 * PAGE)
    buffer[:] = bytes(len(buffer))
    with LeakCheck(iommufd):
        assert map_once(iommufd, ioas, buffer) > 3


def test_memory_limit_makes_more_batches(iommufd: MockIOMMUFD, ioas: IOAS, device: MockDevice) -> None:
    buffer = DMABuffer(64 * PAGE)
    buffer[:] = bytes(len(buffer))
    many = map_once(iommufd, ioas, buffer)
    with iommufd.memory_limit(commands.SMALLEST_MEMORY_LIMIT):
        assert map_once(iommufd, ioas, buffer) > many + 32
    assert map_once(iommufd, ioas, buffer) <= many
    with pytest.raises(IoctlError), iommufd.memory_limit(commands.SMALLEST_MEMORY_LIMIT - 1):
        pass


def test_failures_of_a_device_leave_nothing(iommufd: MockIOMMUFD, ioas: IOAS) -> None:
    """Bind and attach, which make many objects, fail as a whole."""
    rounds = 0
    with LeakCheck(iommufd):
        for attempt in fail_each():
            rounds += 1
            made: tuple[int, int, int] | None = None
            with attempt, contextlib.suppress(IoctlError):
                made = commands.mock_domain(iommufd.fileno(), ioas.id)
            if made is not None:
                destroy(iommufd, made[0])
            assert list(Path("/sys/bus/iommufd_mock/devices").iterdir()) == []
    assert rounds > 20


def test_failure_that_is_not_reached(iommufd: MockIOMMUFD) -> None:
    with fail_nth(100000) as failure:
        iommufd.alloc_ioas().close()
    assert not failure.injected
    assert failure.points > 0
    for _ in range(failure.points):  # and none is left for later
        iommufd.alloc_ioas().close()


def test_count_goes_on_over_the_calls_of_a_block(iommufd: MockIOMMUFD) -> None:
    """And over them alone: what Python and its own system calls allocate fails not, and is not counted."""

    def spaces(count: int) -> list[IOAS]:
        made = []
        for _ in range(count):
            os.close(os.eventfd(0))
            assert len(bytearray(1 << 20)) == len(list(range(1 << 20)))
            made.append(iommufd.alloc_ioas())
        return made

    def close(made: list[IOAS]) -> None:
        for one in made:
            one.close()

    close(spaces(3))
    with fail_nth(100000) as one:
        made = spaces(1)
    close(made)
    with fail_nth(100000) as three:
        made = spaces(3)
    close(made)
    assert one.points < three.points <= 3 * one.points
    with fail_nth(three.points) as failure, pytest.raises(IoctlError) as caught:
        spaces(3)
    assert failure.injected
    assert caught.value.errno == errno.ENOMEM
    left = iommufd.objects
    assert len(left) == 2
    close([one for one in left if isinstance(one, IOAS)])


def test_other_threads_do_not_fail(iommufd: MockIOMMUFD) -> None:
    with fail_nth(1) as failure, ThreadPoolExecutor(1) as pool:
        pool.submit(iommufd.alloc_ioas).result().close()
    assert not failure.injected
    assert failure.points == 0


def test_forked_child_does_not_fail(iommufd: MockIOMMUFD) -> None:
    """Nor does it set its parent's counter, or stop what the parent has begun."""
    fds = Path("/proc/self/fd")
    before = sorted(fds.iterdir())
    with fail_nth(1) as failure:
        child = os.fork()
        if not child:
            status = 1
            try:
                MockIOMMUFD().alloc_ioas().close()
                status = failure.injected
                with fail_nth(1), contextlib.suppress(IoctlError):
                    MockIOMMUFD()
                    status = 1
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(IoctlError):
            iommufd.alloc_ioas()
    assert failure.injected
    assert sorted(fds.iterdir()) == before


def test_settings_are_put_back() -> None:
    files = [Path("/sys/kernel/debug/failslab/ignore-gfp-wait"), *Path("/sys/kernel/debug").glob("fail*/verbose")]
    before = [file.read_text() for file in files]
    assert len(before) > 1
    with fail_nth(1000, verbose=True):
        assert [file.read_text() for file in files] != before
    assert [file.read_text() for file in files] == before


def few_rounds(iommufd: MockIOMMUFD) -> None:
    for attempt in fail_each(limit=2):
        with attempt, contextlib.suppress(IoctlError):
            for _ in range(3):
                iommufd.alloc_ioas()


def test_wrong_uses_of_failures(monkeypatch: pytest.MonkeyPatch, iommufd: MockIOMMUFD) -> None:
    for number in (0, -1, 1 << 32):
        with pytest.raises(ValueError, match="counted from 1"), fail_nth(number):
            pass
    with pytest.raises(ValueError, match="enter it"):
        for _ in fail_each():
            pass
    with pytest.raises(AssertionError, match="after 2 rounds"):
        few_rounds(iommufd)
    with fail_nth(1) as failure:
        with pytest.raises(ValueError, match="already"), fail_nth(2):
            pass
        with pytest.raises(IoctlError):  # the first one has not ended
            iommufd.alloc_ioas()
    assert failure.injected
    monkeypatch.setattr("pyiommufd.testing.mock.failures._DEBUGFS", Path("/nowhere"))
    with pytest.raises(InjectionMissingError, match="CONFIG_FAILSLAB"), fail_nth(1):
        pass
