"""An exception at every opcode of what turns interrupts on and off: the model agrees with the kernel, no fd is lost."""

from __future__ import annotations

import contextlib
import errno
import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyiommufd import IOMMUFD, Claim, ClosedError, Device, EventFD, HostDevice, InUseError, IoctlError
from pyiommufd.kernel.interrupts.interrupt import IRQFlag
from pyiommufd.kernel.interrupts.irq import IRQ
from pyiommufd.uapi import VFIO_IRQ_SET_ACTION_TRIGGER, device_ioctls, ioctls
from tests.opcodes import opcodes
from tests.patience import until
from tests.sweeps import sample

FILES = [
    f"pyiommufd/{name}.py"
    for name in (
        *(f"kernel/interrupts/{each}" for each in ("irq", "interrupts", "interrupt", "eventfd", "ioeventfd")),
        *(f"kernel/device/{each}" for each in ("device", "region", "region_bytes", "removal")),
        "uapi/device_ioctls",
    )
]
PLACE = (0, 2, 1)
"""Where the ioeventfd of these tests writes in BAR 4, how many bytes, and what."""


@dataclass
class Case:
    """A device, and what an operation needs of it.

    Attributes:
        device: A virtio device, with INTx and two MSI-X vectors.
        lent: An eventfd of the caller's.
    """

    device: Device
    lent: EventFD

    @property
    def types(self) -> tuple[IRQ, ...]:
        interrupts = self.device.interrupts
        return interrupts.intx, interrupts.msix, interrupts.err, interrupts.req


def _msix(case: Case) -> IRQ:
    return case.device.interrupts.msix


def _ioeventfd(case: Case) -> object:
    return case.device.region(4).ioeventfd(*PLACE)


def _watch(case: Case) -> object:
    return case.device.watch_removal()


# Name: what is so before, and the operation, which is given what that returned.
OPERATIONS: dict[str, tuple[Callable[[Case], object], Callable[[Case], object]]] = {
    "enable": (lambda case: None, lambda case: _msix(case).enable(2)),
    "enable lent": (lambda case: None, lambda case: _msix(case).enable(eventfds=[None, case.lent])),
    "enable refused": (lambda case: case.device.interrupts.intx.enable(), lambda case: _msix(case).enable(2)),
    "open": (lambda case: _msix(case).enable(eventfds=[None, case.lent]), lambda case: _msix(case).open(0)),
    "open off": (lambda case: None, lambda case: _msix(case).open(1, case.lent)),
    "resize up": (lambda case: _msix(case).enable(), lambda case: _msix(case).resize(2)),
    "resize down": (lambda case: _msix(case).enable(2), lambda case: _msix(case).resize(1)),
    "disable": (lambda case: _msix(case).enable(2), lambda case: _msix(case).disable()),
    "disable intx": (
        lambda case: (case.device.interrupts.intx.enable(), case.device.interrupts.intx.unmask_event()),
        lambda case: case.device.interrupts.intx.disable(),
    ),
    "close one": (lambda case: _msix(case).enable(2), lambda case: _msix(case).vectors[0].close()),
    "close last": (lambda case: _msix(case).open(1), lambda case: _msix(case).vectors[0].close()),
    "unmask event": (
        lambda case: case.device.interrupts.intx.enable(),
        lambda case: case.device.interrupts.intx.unmask_event(),
    ),
    "close unmask event": (
        lambda case: (case.device.interrupts.intx.enable(), case.device.interrupts.intx.unmask_event()),
        lambda case: case.device.interrupts.intx._states[0].unmask.close(),  # type: ignore[union-attr]
    ),
    "ioeventfd": (lambda case: None, _ioeventfd),
    "ioeventfd again": (_ioeventfd, _ioeventfd),
    "close ioeventfd": (_ioeventfd, lambda case: case.device.interrupts.ioeventfds[0].close()),
    "watch": (lambda case: None, _watch),
    "watch refused": (lambda case: case.device.interrupts.req.enable(), _watch),
    "watch as well": (_watch, _watch),
    "close watch": (_watch, lambda case: case.device._removal._watches[0].close()),  # type: ignore[union-attr]
}


def _eventfds() -> list[str]:
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(fd.readlink()) == "anon_inode:[eventfd]":
                found.append(fd.name)
    return found


def _waiting() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pyiommufd-removal")]


def _requested(device: Device) -> list[str]:
    text = Path("/proc/interrupts").read_text()
    return sorted(line.split()[-1].partition("(")[0] for line in text.splitlines() if f"({device.name})" in line)


def _check(case: Case) -> None:
    """The kernel has on what is on record, and nothing else; asked past the model, which would settle it first."""
    device, fd = case.device, case.device.fileno()
    wanted = [f"vfio-msix[{vector.vector}]" for vector in device.interrupts.msix.vectors]
    wanted += ["vfio-intx" for _ in device.interrupts.intx.vectors]
    assert _requested(device) == sorted(wanted)
    for irq in case.types:
        for vector in irq.vectors:
            if irq is device.interrupts.req and _waiting():
                continue  # the device would be closed
            device_ioctls.set_irqs(fd, irq.index, VFIO_IRQ_SET_ACTION_TRIGGER, vector.vector, 1)
            if vector.lent:
                assert case.lent.take() == 1
            else:
                assert vector.take() == 1
        if not irq.vectors:
            # 0 vectors turn a type off that is on; one that is off refuses.
            with pytest.raises(IoctlError):
                device_ioctls.set_irqs(fd, irq.index, VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0)
    place = (device.region(4).file_offset + PLACE[0], *PLACE[1:])
    if [event for event in device.interrupts.ioeventfds if event._on[0]]:
        device_ioctls.ioeventfd(fd, *place, None, ioctls.new_cell("int"))
    else:
        with pytest.raises(IoctlError) as caught:
            device_ioctls.ioeventfd(fd, *place, None, ioctls.new_cell("int"))
        assert caught.value.errno == errno.ENODEV


def _check_use(case: Case) -> None:
    """Everything can be used as if nothing had been."""
    interrupts = case.device.interrupts
    for irq in case.types:
        irq.disable()
        assert not [event for event in irq._events if not event.closed]
    for event in interrupts.ioeventfds:
        event.close()
    with interrupts.msix.enable(2)[1] as vector, case.device.region(4).ioeventfd(*PLACE), case.device.watch_removal():
        vector.trigger()
        assert vector.take() == 1
    assert interrupts.msix.vectors[0].vector == 0


@pytest.fixture
def resizable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whether MSI-X can be resized while it is on: older kernels say no, and this one can be treated so, too."""
    if request.param == "NORESIZE":
        flags = vars(IRQ)["flags"].fget
        monkeypatch.setattr(IRQ, "flags", property(lambda irq: flags(irq) | IRQFlag.NORESIZE))
    return [request.param] if request.param else []


def _disable(case: Case) -> None:
    for irq in case.types:
        irq.disable()


def _enable_another(case: Case) -> None:
    _disable(case)
    case.device.interrupts.msix.enable()


HANDLERS: dict[str, Callable[[Case], object]] = {
    "disables": _disable,
    "enables": _enable_another,
    "closes one": lambda case: case.device.interrupts.msix.vectors[-1].close(),
    "closes": lambda case: case.device.close(),
}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(
    ("name", "resizable"),
    [*((name, "") for name in OPERATIONS), ("resize up", "NORESIZE"), ("open", "NORESIZE")],
    indirect=["resizable"],
)
def test_interrupted_anywhere(
    claimed: Claim, iommufd: IOMMUFD, neighbour: HostDevice, name: str, resizable: list[str]
) -> None:
    _sweep(iommufd, neighbour, name, " ".join(["interrupts", name, *resizable]), lambda case: None)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("raises", [True, False], ids=["raises", "goes on"])
@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("name", ["enable", "open", "resize up", "disable", "close one", "unmask event", "ioeventfd"])
def test_handler_that_changes_the_same(
    claimed: Claim, iommufd: IOMMUFD, neighbour: HostDevice, name: str, handler: str, raises: bool
) -> None:
    sweep = f"interrupts {name} {handler}{'' if raises else ' on'}"
    _sweep(iommufd, neighbour, name, sweep, HANDLERS[handler], raises=raises)


def _sweep(
    iommufd: IOMMUFD,
    neighbour: HostDevice,
    name: str,
    sweep: str,
    handler: Callable[[Case], object],
    *,
    raises: bool = True,
) -> None:
    prepare, operate = OPERATIONS[name]
    before = sorted(_eventfds())

    def run(stop: int | None) -> int:
        with EventFD() as lent:
            case = Case(iommufd.bind(neighbour), lent)
            try:
                prepare(case)
                where = "a refusal"

                def operation() -> None:
                    with contextlib.suppress(IoctlError, InUseError, ClosedError, ValueError, IndexError):
                        operate(case)

                def handle() -> None:
                    with contextlib.suppress(IndexError):  # there is no vector
                        handler(case)

                try:
                    count, where = opcodes(operation, FILES, stop, handle, raises=raises)
                    if not case.device.closed:
                        _check(case)
                        _check_use(case)
                except BaseException as error:
                    error.add_note(f"interrupted at opcode {stop}: {where}")
                    raise
            finally:
                case.device.close()
            lent.signal()
            assert lent.take() == 1  # it is open, and nothing else is in it
        until(lambda: not _waiting(), "the thread that waits for the removal ends")
        gc.collect()
        assert sorted(_eventfds()) == before, f"interrupted at opcode {stop}: {where}"
        return count

    points = run(None)
    assert points > 20
    for stop in sample(sweep.replace(" ", "."), range(points), 4 if raises else 2):
        run(stop)
