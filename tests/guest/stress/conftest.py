"""What is random here is the same in every run of one sample; and values for arguments that must be refused."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis.internal.conjecture import providers

from pyiommufd import (
    IOAS,
    IOMMUFD,
    Claim,
    DMABuffer,
    HostDevice,
)
from pyiommufd.kernel.memory.iova import IOVARange
from tests import sweeps
from tests.guest.stress.hammer import PAGE, Hammer


@pytest.fixture(scope="session", autouse=True)
def numbers_of_the_seed_alone() -> Iterator[None]:
    """Hypothesis also draws constants of the source of whatever modules are loaded by then.

    The same seed would stand for something else in another choice of tests, and in the second run of one process.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers.HypothesisProvider, "_maybe_draw_constant", lambda *_, **__: None, raising=False)
        yield


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Without the garbage collector: what a handler raises in a finalizer or a callback of it is lost."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def memories() -> list[Any]:
    """Memory that cannot be mapped, for each reason that there is; the last ones can."""
    good, closed = DMABuffer(4 * PAGE), DMABuffer(PAGE)
    closed.close()
    released = memoryview(bytearray(PAGE))
    released.release()
    view = memoryview(good)
    many = view.cast("B", shape=[4, PAGE])
    return [
        closed,
        released,
        view[::2],
        view[::-1],
        view[1:],
        view[:-1],
        view[:0],
        view.toreadonly(),
        many,
        mmap.mmap(-1, PAGE, prot=mmap.PROT_READ),
        b"",
        b"\0" * PAGE,
        bytearray(),
        bytearray(PAGE),
        array.array("Q", range(512)),
        (ctypes.c_char * PAGE)(),
        np.zeros(512),
        np.zeros((64, 64))[:, ::2],
        np.array(["a", None], dtype=object),
        np.datetime64("2020-01-01"),
        np.zeros(0),
        uuid.UUID(int=0),
        good,
        view[PAGE : 2 * PAGE],
    ]


@pytest.fixture
def fds() -> Iterator[list[int]]:
    """Fds of many kinds, none of them of an iommufd or of a vfio device."""
    with ExitStack() as stack:
        files = [os.open(path, os.O_RDONLY) for path in ("/dev/null", "/dev/zero", "/proc/self/status", "/", "/bin/sh")]
        files += os.pipe()
        files += [os.memfd_create("x"), os.open("/dev/iommu", os.O_PATH), os.open("/dev/vfio", os.O_PATH)]
        files += [os.eventfd(0) if hasattr(os, "eventfd") else os.dup(0)]
        for fd in files:
            stack.callback(os.close, fd)
        left, right = socket.socketpair()
        with left, right, tempfile.TemporaryFile() as file:
            gone = os.dup(0)
            os.close(gone)
            yield [*files, left.fileno(), file.fileno(), gone, -1, -100, 1 << 20, 1 << 31, 1 << 64, -(1 << 64)]


@pytest.fixture
def others(claimed: Claim, claimed_alone: Claim, alone: HostDevice, memories: list[Any]) -> Iterator[list[Any]]:
    """Objects that an argument must not be: of another iommufd, closed, of another kind."""
    with IOMMUFD() as other, ExitStack() as stack:
        closed_iommufd = IOMMUFD()
        closed_ioas = other.alloc_ioas()
        closed_ioas.close()
        foreign = other.bind(alone)
        dead = closed_iommufd.alloc_ioas()
        closed_iommufd.close()
        stack.callback(foreign.close)
        yield [
            None,
            ...,
            object(),
            IOAS,
            other,
            closed_iommufd,
            other.alloc_ioas(),
            closed_ioas,
            dead,
            foreign,
            alone,
            alone.group,
            IOVARange(0, PAGE - 1),
            IOVARange("a", None),  # type: ignore[arg-type]
            (),
            [],
            {},
            [()],
            [(1,)],
            [(1, 2, 3)],
            [None],
            ["ab"],
            {1: 2},
            range(3),
            Path("/dev/null"),
            Path("\0"),
            Path(),
            lambda: 0,
            *memories,
        ]


@pytest.fixture
def hammer(others: list[Any], request: pytest.FixtureRequest) -> Hammer:
    name = f"stress.arguments.{request.node.name.removeprefix('test_')}"
    examples = int(os.environ.get("PYIOMMUFD_STRESS_EXAMPLES") or sweeps.amount(name, 10_000, 60))
    start = sweeps.seed(name)
    print(f"{examples} examples, hypothesis' seeds from {start}")  # pytest shows it where the test fails
    return Hammer(others, examples, start)
