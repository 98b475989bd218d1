"""A device's interrupts: enabled, waited for in every way, triggered, resized, disabled."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import (
    IOMMUFD,
    Claim,
    ClosedError,
    Device,
    EventFD,
    ForkedError,
    HostDevice,
    InUseError,
    IoctlError,
    UnsupportedError,
)
from pyiommufd.kernel.interrupts.interrupt import IRQFlag, IRQIndex
from pyiommufd.kernel.interrupts.irq import IRQ
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.threads import ends_of_waiters
from tests.patience import patience
from tests.sweeps import amount

SHORT = 0.02
"""How long to wait for an interrupt that is not to come, by `patience`: one that comes takes a few milliseconds."""


def lines(device: Device) -> list[str]:
    """The interrupts that the kernel has requested for the device."""
    text = Path("/proc/interrupts").read_text()
    return [line.split()[-1] for line in text.splitlines() if f"({device.name})" in line]


def test_what_edu_has(device: Device) -> None:
    interrupts = device.interrupts
    assert [interrupts[index].count for index in IRQIndex] == [1, 1, 0, 1, 1]
    assert interrupts.intx.flags == IRQFlag.EVENTFD | IRQFlag.MASKABLE | IRQFlag.AUTOMASKED
    assert interrupts.msi.flags == IRQFlag.EVENTFD | IRQFlag.NORESIZE
    assert interrupts.msi is interrupts[1]
    assert repr(interrupts.msi) == f"<IRQ MSI of {device.name}: off>"
    assert repr(interrupts) == f"<Interrupts of {device.name}: none on>"
    assert interrupts.enabled == ()
    with pytest.raises(IoctlError) as caught:
        _ = interrupts[5].count
    assert caught.value.errno == errno.EINVAL
    (cause,) = caught.value.causes
    assert cause.summary == f"{device.name} has no interrupt of the type 5"
    assert cause.evidence == "it has 0 (INTX), 1 (MSI), 3 (ERR), 4 (REQ)"
    with pytest.raises(IoctlError, match="has no interrupt of the type 100"):
        interrupts[100].enable()
    for wrong in (-1, 1 << 32):
        with pytest.raises(ValueError, match="index"):
            interrupts[wrong]


def test_msi_of_the_device(edu: EduDriver) -> None:
    msi = edu.device.interrupts.msi
    (vector,) = msi.enable()
    assert msi.enabled
    assert msi.vectors == (vector,)
    assert lines(edu.device) == [f"vfio-msi[0]({edu.device.name})"]
    with pytest.raises(TimeoutError, match="no signal"):
        vector.wait(patience(SHORT))
    for _ in range(20):
        edu.raise_interrupt()
        assert vector.wait(patience()) == 1
        edu.acknowledge_interrupt()
    msi.disable()
    assert not list(msi.vectors)
    assert vector.closed
    assert lines(edu.device) == []
    with pytest.raises(ClosedError):
        vector.wait(0)
    msi.disable()


def test_intx_is_masked_until_unmasked(edu: EduDriver) -> None:
    intx = edu.device.interrupts.intx
    (line,) = intx.enable()
    for _ in range(5):
        edu.raise_interrupt()
        assert line.wait(patience()) == 1
        # Still asserted, and masked by having come.
        with pytest.raises(TimeoutError):
            line.wait(patience(SHORT))
        intx.unmask()
        assert line.wait(patience()) == 1
        edu.acknowledge_interrupt()
        intx.unmask()
        with pytest.raises(TimeoutError):
            line.wait(patience(SHORT))


def test_intx_that_is_masked_comes_when_it_is_unmasked(edu: EduDriver) -> None:
    intx = edu.device.interrupts.intx
    (line,) = intx.enable()
    intx.mask()
    edu.raise_interrupt()
    with pytest.raises(TimeoutError):
        line.wait(patience(SHORT))
    intx.unmask()
    assert line.wait(patience()) == 1
    edu.acknowledge_interrupt()


def test_intx_unmasked_by_an_eventfd(edu: EduDriver) -> None:
    intx = edu.device.interrupts.intx
    (line,) = intx.enable()
    event = intx.unmask_event()
    with pytest.raises(InUseError, match="already"):
        intx.unmask_event()
    edu.raise_interrupt()
    for _ in range(5):
        assert line.wait(patience()) == 1
        event.signal()
    assert line.wait(patience()) == 1
    edu.acknowledge_interrupt()
    event.close()
    event.close()
    # Without it nothing unmasks any more, and there is room for another.
    edu.raise_interrupt()
    with pytest.raises(TimeoutError):
        line.wait(patience(SHORT))
    with intx.unmask_event() as again:
        again.signal()
        assert line.wait(patience()) == 1
        edu.acknowledge_interrupt()
    third = intx.unmask_event()
    intx.disable()
    assert third.closed


def test_only_intx_can_be_masked(device: Device) -> None:
    msi, intx = device.interrupts.msi, device.interrupts.intx
    msi.enable()
    for action in (msi.mask, msi.unmask, msi.unmask_event):
        with pytest.raises(UnsupportedError, match="cannot be masked"):
            action()
    for action in (intx.mask, intx.unmask, intx.unmask_event):
        with pytest.raises(ValueError, match="is off; enable"):
            action()


def test_one_of_intx_and_msi(device: Device) -> None:
    device.interrupts.msi.enable()
    with pytest.raises(IoctlError, match=r"device\.interrupts\.msi\.disable\(\)") as caught:
        device.interrupts.intx.enable()
    assert caught.value.errno == errno.EINVAL
    assert not device.interrupts.intx.enabled
    # Those beside the three are in nobody's way.
    device.interrupts.req.enable()
    device.interrupts.err.enable()
    assert [irq.name for irq in device.interrupts.enabled] == ["MSI", "REQ", "ERR"]
    device.interrupts.msi.disable()
    device.interrupts.intx.enable()


def test_enable_checks_its_arguments(device: Device) -> None:
    interrupts = device.interrupts
    with pytest.raises(UnsupportedError, match="has no MSIX"):
        interrupts.msix.enable()
    for count in (0, 2, -1, 1 << 33):
        with pytest.raises(ValueError, match="1 to 1 vectors"):
            interrupts.msi.enable(count)
    for minimum in (0, 2):
        with pytest.raises(ValueError, match=r"minimum has to be from 1 to 1 vectors, not "):
            interrupts.msi.enable(1, minimum=minimum)
    with pytest.raises(TypeError):
        interrupts.msi.enable("1")  # type: ignore[arg-type]
    for use in (interrupts.msi.trigger, lambda: interrupts.msi.resize(1)):
        with pytest.raises(ValueError, match="is off"):
            use()
    (vector,) = interrupts.msi.enable(1, minimum=1)
    with pytest.raises(InUseError, match="resize") as caught:
        interrupts.msi.enable()
    assert caught.value.users == (vector,)
    assert interrupts.msi.resize(1) == (vector,)
    for start, count in ((1, 1), (-1, 1), (0, 2), (0, 0)):
        with pytest.raises(ValueError, match="not among"):
            interrupts.msi.trigger(start, count)


@pytest.mark.parametrize("name", ["intx", "msi", "err", "req"])
def test_software_trigger(device: Device, name: str) -> None:
    irq = getattr(device.interrupts, name)
    (vector,) = irq.enable()
    vector.trigger()
    assert vector.wait(0) == 1
    irq.trigger()
    irq.trigger(0, 1)
    assert vector.take() == 2
    assert vector.take() == 0
    irq.disable()
    (again,) = irq.enable()
    again.trigger()
    assert again.wait(0) == 1


def test_100_000_triggers_are_counted_exactly(device: Device) -> None:
    triggers = amount("kernel.triggers", 100_000, 10_000)
    (vector,) = device.interrupts.msi.enable()
    total, waits = 0, 0
    done = threading.Event()

    def count() -> None:
        nonlocal total, waits
        while total < triggers and not done.is_set():
            try:
                total += vector.wait(patience())
            except TimeoutError:
                return
            waits += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(triggers):
            vector.trigger()
        thread.join()
    finally:
        done.set()
    assert total == triggers
    assert waits > 1
    assert vector.take() == 0


def test_1000_interrupts_of_the_device_one_at_a_time_from_asyncio(edu: EduDriver) -> None:
    (vector,) = edu.device.interrupts.msi.enable()
    counts = []

    async def main() -> None:
        for _ in range(1000):
            edu.raise_interrupt()
            counts.append(await asyncio.wait_for(vector, patience()))
            edu.acknowledge_interrupt()

    asyncio.run(main())
    assert counts == [1] * 1000
    assert vector.take() == 0


def test_async_for_ends_when_the_interrupt_is_disabled(device: Device) -> None:
    (vector,) = device.interrupts.msi.enable()
    counts = []

    async def main() -> None:
        async for count in vector:
            counts.append(count)
            if len(counts) < 5:
                vector.trigger()
            else:
                asyncio.get_running_loop().call_later(0.05, device.interrupts.msi.disable)

    vector.trigger()
    asyncio.run(asyncio.wait_for(main(), patience()))
    assert counts == [1] * 5


def test_fileno_is_for_select(device: Device) -> None:
    (vector,) = device.interrupts.msi.enable()
    assert select.select([vector], [], [], 0) == ([], [], [])
    vector.trigger()
    assert select.select([vector], [], [], patience())[0] == [vector]
    assert int.from_bytes(os.read(vector.fileno(), 8), "little") == 1


def test_close_of_the_device_wakes_those_who_wait(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    device = iommufd.bind(first)
    (vector,) = device.interrupts.msi.enable()
    fd = vector.fileno()
    assert ends_of_waiters(vector.wait, lambda: vector._file.users == 3, device.close) == [ClosedError] * 3
    assert not Path(f"/proc/self/fd/{fd}").exists()
    for use in (lambda: device.interrupts.msi.enable(), lambda: device.interrupts.msi.count, vector.trigger):
        with pytest.raises(ClosedError):
            use()
    vector.close()
    assert lines(device) == []


def test_close_of_one_vector_turns_the_only_one_off(device: Device) -> None:
    (vector,) = device.interrupts.msi.enable()
    with vector:
        pass
    assert not device.interrupts.msi.enabled
    assert lines(device) == []


@pytest.fixture
def msix(claimed: Claim, iommufd: IOMMUFD, neighbour: HostDevice) -> IRQ:
    """The MSI-X of a virtio device: two vectors."""
    return iommufd.bind(neighbour).interrupts.msix


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_vectors_closed_one_by_one_turn_the_type_off(msix: IRQ, order: tuple[int, int]) -> None:
    vectors = msix.enable(2)
    assert repr(msix) == f"<IRQ MSIX of {msix.device.name}: 0-1 on>"
    vectors[order[0]].close()
    assert msix.vectors == (vectors[order[1]],)
    assert lines(msix.device) == [f"vfio-msix[{order[1]}]({msix.device.name})"]
    assert repr(msix) == f"<IRQ MSIX of {msix.device.name}: {order[1]} on>"
    assert repr(msix.device.interrupts) == f"<Interrupts of {msix.device.name}: MSIX on>"
    vectors[order[1]].close()
    assert not msix.enabled
    assert lines(msix.device) == []
    # The kernel has the type off, too: another can be turned on.
    msix.device.interrupts.intx.enable()


def test_vector_is_opened_anew(msix: IRQ) -> None:
    first, second = msix.enable(2)
    first.close()
    with pytest.raises(InUseError, match="on already") as caught:
        msix.open(1)
    assert caught.value.users == (second,)
    again = msix.open(0)
    assert list(msix.vectors) == [again, second]
    for vector in msix.vectors:
        vector.trigger()
        assert vector.take() == 1
    msix.trigger()
    assert [vector.take() for vector in msix.vectors] == [1, 1]
    first.close()
    assert not again.closed
    for number in (-1, 2):
        with pytest.raises(ValueError, match="no vector"):
            msix.open(number)
    msix.disable()
    last = msix.open(1)
    assert msix.vectors == (last,)
    with pytest.raises(ValueError, match="not among"):
        msix.trigger(0, 1)
    msix.trigger()
    assert last.take() == 1
    assert msix.resize(2) == (last,)
    assert msix.resize(1) == ()
    assert last.closed
    assert not msix.enabled


def test_eventfds_of_the_callers(edu: EduDriver) -> None:
    """As KVM's irqfds are: signalled by the device, read by others, closed by those who have made them."""
    msi = edu.device.interrupts.msi
    own = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        (vector,) = msi.enable(eventfds=[own])
        assert repr(vector) == f"<Interrupt MSI[0] of {edu.device.name} on the caller's eventfd>"
        edu.raise_interrupt()
        assert os.eventfd_read(own) == 1
        edu.acknowledge_interrupt()
        for use in (vector.take, lambda: vector.wait(0)):
            with pytest.raises(ValueError, match="owner"):
                use()
        vector.close()
        assert not msi.enabled
        os.set_blocking(own, False)
        with pytest.raises(BlockingIOError):  # the close was no signal
            os.eventfd_read(own)
        with EventFD() as event:
            vector = msi.open(0, event)
            # Its number may be another file's by now; the vector stays what it is.
            edu.raise_interrupt()
            assert event.wait(patience()) == 1
            edu.acknowledge_interrupt()
            edu.device.close()
            assert vector.closed
            assert not event.closed
            with pytest.raises(TimeoutError):
                event.wait(0)
    finally:
        os.close(own)


def test_eventfds_with_gaps(msix: IRQ) -> None:
    with EventFD() as event:
        (vector,) = msix.enable(eventfds=[None, event])
        assert vector.vector == 1
        assert lines(msix.device) == [f"vfio-msix[1]({msix.device.name})"]
        first = msix.open(0)
        msix.trigger()
        assert (first.take(), event.take()) == (1, 1)
        msix.disable()
        first, second = msix.enable(eventfds=[event, event])  # one for both
        msix.trigger()
        assert event.take() == 2
        second.close()
        msix.trigger()
        assert event.take() == 1
    first.trigger()  # nobody can read it any more, and it is still there
    assert msix.vectors == (first,)


def test_what_is_no_eventfd(msix: IRQ) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    closed = EventFD()
    closed.close()
    with open("/dev/null") as file, EventFD() as event:
        for wrong, error in (
            (file.fileno(), ValueError),
            (-1, ValueError),
            (1 << 40, ValueError),
            ("1", TypeError),
            (closed, ClosedError),
            (1 << 20, IoctlError),
        ):
            with pytest.raises(error):
                msix.enable(eventfds=[event, wrong])  # type: ignore[list-item]
            assert not msix.enabled
        with pytest.raises(ValueError, match="are None"):
            msix.enable(eventfds=[None, None])
        with pytest.raises(ValueError, match="1 to 2 vectors"):
            msix.enable(eventfds=[event] * 3)
        with pytest.raises(TypeError, match="either"):
            msix.enable(1, eventfds=[event])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_unmask_event_of_the_callers(edu: EduDriver) -> None:
    intx = edu.device.interrupts.intx
    (line,) = intx.enable()
    with EventFD() as event:
        with intx.unmask_event(event) as unmask:
            assert "caller's" in repr(unmask)
            edu.raise_interrupt()
            assert line.wait(patience()) == 1
            event.signal()
            assert line.wait(patience()) == 1
            edu.acknowledge_interrupt()
        event.signal()
        assert event.take() == 1  # the kernel has not taken it


def test_interrupts_are_the_parents_after_a_fork(device: Device, in_child: Callable[[Callable[[], Any]], Any]) -> None:
    (vector,) = device.interrupts.msi.enable()

    def child() -> list[str]:
        refused = []
        for use in (vector.trigger, vector.take, lambda: vector.wait(0), device.interrupts.msi.disable):
            try:
                use()
            except ForkedError as error:
                refused.append(type(error).__name__)
        fd = vector._file.inherited
        device.close()
        assert not Path(f"/proc/self/fd/{fd}").exists()
        return refused

    assert in_child(child) == ["ForkedError"] * 4
    vector.trigger()
    assert vector.wait(0) == 1


def test_no_eventfd_is_left_where_enabling_fails(device: Device) -> None:
    device.interrupts.msi.enable()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(IoctlError):
            device.interrupts.intx.enable()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
