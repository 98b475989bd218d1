"""Every kind of object alive at once, closed in whatever order: nothing stays busy, and nothing is left."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import BusyError, ClosedError, CloseError, DMABuffer, ForkedError, InUseError
from pyiommufd.testing.checks.leaks import LeakCheck
from pyiommufd.testing.mock import MockIOMMUFD
from tests.guest.mock_scene import PASID, MockScene
from tests.guest.threads import run_all
from tests.sweeps import amount, sample, seed

DEVICES = Path("/sys/bus/iommufd_mock/devices")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No fd, no window, no mock device."""
    gc.collect()
    with LeakCheck():
        yield
        gc.collect()
    assert list(DEVICES.iterdir()) == []


def check_unpinned(buffer: DMABuffer) -> None:
    """The kernel has let go of the memory."""
    with MockIOMMUFD() as afterwards:
        assert afterwards.pinned(buffer, 0)


def shuffled(number: int) -> list[str]:
    names = list(MockScene.NAMES)
    random.Random(number).shuffle(names)  # noqa: S311 - no secret
    return names


# Orders


@pytest.mark.long
def test_any_order() -> None:
    """What has users is refused and stays as it was; in the end the iommufd has nothing any more."""
    start = seed("virtual.close_order")
    for number in range(start, start + amount("virtual.close_order", 2000, 12)):
        order = shuffled(number)
        with MockIOMMUFD() as iommufd, LeakCheck(iommufd):
            scene = MockScene(iommufd)
            try:
                scene.close_all(order)
            except BaseException as error:
                error.add_note(f"order: {' '.join(order)}")
                raise
            assert iommufd.objects == ()


@pytest.mark.long
def test_each_before_each_other() -> None:
    pairs = list(itertools.permutations(MockScene.NAMES, 2))
    for one, other in sample("virtual.close_pairs", pairs, 10):
        with MockIOMMUFD() as iommufd, LeakCheck(iommufd):
            scene = MockScene(iommufd)
            # The first of them once more: it has nothing left to do, or is still refused, or can be closed now.
            for name in (one, other, one):
                scene.close(name)
            scene.close_all(MockScene.NAMES)


def test_everything_in_one_go() -> None:
    iommufd = MockIOMMUFD()
    scene = MockScene(iommufd)
    scene.check_alive()
    iommufd.close()
    assert scene.really_open() == {"buffer"}
    check_unpinned(scene.buffer)
    scene.buffer.close()


@pytest.mark.long
def test_the_rest_in_one_go() -> None:
    """Some are closed before the iommufd, in any order."""
    start = seed("virtual.close_rest")
    for number in range(start, start + amount("virtual.close_rest", 500, 6)):
        iommufd = MockIOMMUFD()
        scene = MockScene(iommufd)
        for name in shuffled(number)[: number % len(MockScene.NAMES)]:
            scene.close(name)
        iommufd.close()
        assert scene.really_open() <= {"buffer"}
        if not scene.buffer.closed:
            check_unpinned(scene.buffer)
        scene.buffer.close()


@pytest.mark.long
def test_closed_by_many_threads() -> None:
    """Each in an order of its own, over and over: whatever comes first, in the end everything is closed, once."""
    start = seed("virtual.close_threads")
    for number in range(start, start + amount("virtual.close_threads", 300, 4)):
        with MockIOMMUFD() as iommufd, LeakCheck(iommufd):
            scene = MockScene(iommufd)

            def work(order: list[str], scene: MockScene = scene) -> None:
                while scene.really_open():
                    for name in order:
                        with contextlib.suppress(InUseError, BusyError, BufferError, ClosedError):
                            scene.attempt(name)

            run_all([partial(work, shuffled(number + at)) for at in range(3)])
            assert iommufd.objects == ()


# Fds of queues that others have


@pytest.mark.parametrize("name", ["events", "faults"])
def test_an_open_copy_of_a_queues_fd_keeps_it_and_nothing_else(name: str) -> None:
    with MockIOMMUFD() as iommufd, LeakCheck(iommufd):
        scene = MockScene(iommufd)
        queue = getattr(scene, name)
        copy = os.dup(queue.fileno())
        for each in ("device", "peer", "nested"):
            scene.close(each)
        with pytest.raises(BusyError, match="fd") as caught:
            queue.close()
        assert caught.value.causes
        assert not queue.closed
        os.close(copy)
        queue.close()
        scene.open.discard(name)
        scene.close_all(MockScene.NAMES)


def test_open_copies_of_fds_when_all_is_closed() -> None:
    """What they keep is told, and goes with the last of them."""
    iommufd = MockIOMMUFD()
    scene = MockScene(iommufd)
    copies = [os.dup(queue.fileno()) for queue in (scene.events, scene.faults)]
    with pytest.raises(CloseError) as caught:
        iommufd.close()
    for queue in ("VEventQueue", "FaultQueue"):
        assert queue in str(caught.value)
    assert all(isinstance(error, BusyError) for error in caught.value.errors)
    assert iommufd.closed
    assert scene.really_open() == {"buffer"}
    assert list(DEVICES.iterdir()) == []
    for copy in copies:
        os.close(copy)
    check_unpinned(scene.buffer)
    scene.buffer.close()


# Forked children


@pytest.mark.long
def test_a_child_that_closes_leaves_the_parents(in_child: Callable[[Callable[[], Any]], Any]) -> None:
    start = seed("virtual.close_in_child")
    with MockIOMMUFD() as iommufd, LeakCheck(iommufd):
        scene = MockScene(iommufd)
        for number in range(start, start + amount("virtual.close_in_child", 50, 3)):

            def child(order: list[str] = shuffled(number)) -> None:  # noqa: B008 - this round's
                for name in order:
                    if name in ("mapping", "buffer"):
                        with pytest.raises((ForkedError, BufferError)):
                            scene.attempt(name)
                    else:
                        scene.attempt(name)
                iommufd.close()

            in_child(child)
            scene.check_alive()
        scene.close_all(MockScene.NAMES)


def in_living_child(body: Callable[[], object]) -> Callable[[], None]:
    """Run a function in a child, which lives on until what is returned is called."""
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(done[1])
            body()
            os.write(ready[1], b"x")
            os.read(done[0], 1)  # the end, when the parent closes it or is gone
        finally:
            os._exit(0)
    os.close(ready[1])
    os.close(done[0])
    assert os.read(ready[0], 1) == b"x"

    def end() -> None:
        os.close(done[1])
        os.waitpid(child, 0)
        os.close(ready[0])

    return end


def test_a_child_that_lives_on_keeps_queues_until_it_ends() -> None:
    """It has copies of their fds, as every child has."""
    with MockIOMMUFD() as iommufd, LeakCheck(iommufd):
        scene = MockScene(iommufd)
        end = in_living_child(lambda: None)
        with pytest.raises(BusyError, match="fd"):
            scene.events.close()
        end()
        scene.close_all(MockScene.NAMES)


def test_a_child_that_has_closed_keeps_nothing() -> None:
    iommufd = MockIOMMUFD()
    scene = MockScene(iommufd)
    end = in_living_child(iommufd.close)
    iommufd.close()
    check_unpinned(scene.buffer)
    end()
    scene.buffer.close()


# The garbage collector


def test_dropped_unclosed_it_warns_and_leaves_nothing() -> None:
    iommufd = MockIOMMUFD()
    scene = MockScene(iommufd)
    # The mock IOMMU does not detach PASIDs when the kernel frees a device.
    scene.device.detach(PASID)
    buffer = scene.buffer
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        del iommufd, scene
        gc.collect()
    assert {warning.category for warning in seen} == {ResourceWarning}
    unclosed = sorted(str(warning.message).split()[1].strip("<") for warning in seen)
    assert unclosed == ["FaultQueue", "MockDevice", "MockDevice", "MockIOMMUFD", "VEventQueue"]
    check_unpinned(buffer)
    buffer.close()
