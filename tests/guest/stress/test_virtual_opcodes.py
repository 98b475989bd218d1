"""An exception before any opcode of what makes and closes nested page tables, vIOMMUs and what is made of these.

What has been closed is so in the kernel, what is left can be closed, and nothing stays when the iommufd is closed.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable
from pathlib import Path

import pytest

from pyiommufd import IOMMUFDError
from pyiommufd.testing.checks.leaks import LeakCheck
from pyiommufd.testing.mock import MockIOMMUFD, commands
from tests.guest.mock_scene import IOVA, PASID, VIRTUAL_ID, MockScene
from tests.mock_data import stage1
from tests.opcodes import opcodes
from tests.sweeps import sample

FILES = (
    "pyiommufd/kernel/",
    "pyiommufd/uapi/",
    "pyiommufd/closing.py",
    "pyiommufd/iterables.py",
    "pyiommufd/testing/mock/device.py",
    "pyiommufd/testing/mock/iommufd.py",
)
DEVICES = Path("/sys/bus/iommufd_mock/devices")

Step = Callable[[MockScene], object]


def _detach(scene: MockScene) -> None:
    scene.device.detach(PASID)
    scene.device.detach()
    scene.peer.detach()


def _close(*names: str) -> Step:
    def close(scene: MockScene) -> None:
        for name in names:
            scene.attempt(name)

    return close


def _nothing(scene: MockScene) -> None:
    """Nothing comes before."""


# What comes before, and what is interrupted.
CLOSES: dict[str, tuple[Step, Step]] = {
    "iommufd": (_nothing, lambda scene: scene.iommufd.close()),
    "device": (_nothing, _close("device")),
    "ioas": (_detach, _close("ioas")),
    "parent": (_detach, _close("parent")),
    "viommu": (_detach, _close("viommu")),
    "nested": (_detach, _close("nested")),
    "virtual": (_detach, _close("virtual")),
    "faults": (_close("device", "nested"), _close("faults")),
    "vdevice": (_nothing, _close("vdevice")),
    "events": (_nothing, _close("events")),
    "second": (_nothing, _close("second")),
    "window": (_nothing, _close("window")),
    "refused": (_nothing, _close("viommu")),
}
MAKES: dict[str, tuple[Step, Step]] = {
    "HWPT.alloc_nested": (_nothing, lambda scene: scene.parent.alloc_nested(stage1(), fault_queue=scene.faults)),
    "VIOMMU.alloc_nested": (_nothing, lambda scene: scene.viommu.alloc_nested(stage1())),
    "alloc_viommu": (_nothing, lambda scene: scene.device.alloc_viommu(scene.parent, commands.VIOMMU_TYPE)),
    "alloc_vdevice": (
        lambda scene: scene.vdevice.close(),
        lambda scene: scene.viommu.alloc_vdevice(scene.device, VIRTUAL_ID),
    ),
    "alloc_event_queue": (
        lambda scene: scene.events.close(),
        lambda scene: scene.viommu.alloc_event_queue(commands.VEVENTQ_TYPE),
    ),
    "alloc_hw_queue": (
        lambda scene: scene.second.close(),
        lambda scene: scene.viommu.alloc_hw_queue(commands.HW_QUEUE_TYPE, 1, IOVA, mmap.PAGESIZE),
    ),
    "VIOMMU.map": (_close("window"), lambda scene: scene.viommu.map(*scene.registers)),
    "events.read": (_nothing, lambda scene: scene.events.read(timeout=0)),
    "faults.read": (_nothing, lambda scene: scene.faults.read(timeout=0)),
    "faults.respond": (_nothing, lambda scene: scene.faults.respond(scene.request)),
    "invalidate": (_nothing, lambda scene: scene.nested.invalidate([])),
}

# What the signal handler does, and whether it raises.
MODES: dict[str, tuple[Step, bool]] = {
    "raises": (_nothing, True),
    "closes a queue, raises": (lambda scene: scene.events.close(), True),
    "closes the vIOMMU": (lambda scene: scene.viommu.close(), False),
    "closes all": (lambda scene: scene.iommufd.close(), False),
}


def _sweep(name: str, mode: str, prepare: Step, action: Step, *, repeated: bool) -> None:
    handler, raises = MODES[mode]
    leaks = LeakCheck()

    def once(stop: int | None) -> int:
        """Up to that opcode, or the end; how many there were."""
        scene = MockScene(MockIOMMUFD())
        prepare(scene)

        def act() -> None:
            # What is refused is so in every run, or is what the checks find.
            with contextlib.suppress(IOMMUFDError, TimeoutError, ValueError):
                action(scene)

        def handle() -> None:
            with contextlib.suppress(IOMMUFDError):
                handler(scene)

        count, where = opcodes(act, FILES, stop, handle, raises=raises)
        try:
            if repeated and name != "refused":
                action(scene)
                assert scene.iommufd.closed if name == "iommufd" else name not in scene.really_open()
            _detach(scene) if not scene.device.closed else None
            scene.iommufd.close()
            assert scene.really_open() <= {"buffer"}
            scene.buffer.close()
            assert leaks.leaks() == []
            assert list(DEVICES.iterdir()) == []
        except BaseException as error:
            error.add_note(f"{name}, interrupted before opcode {stop}, {where}")
            raise
        return count

    every = once(None)
    assert every > 5
    for stop in sample(f"stress.virtual[{name}, {mode}]", range(every), 2 if mode == "raises" else 1):
        once(stop)


# Of what was made and not yet given to anybody, and of what is raised in its finalizer.
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CLOSES)
def test_a_handler_in_a_close(uncollected: None, name: str, mode: str) -> None:
    prepare, action = CLOSES[name]
    _sweep(name, mode, prepare, action, repeated=True)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MAKES)
def test_a_handler_in_what_makes_and_uses(uncollected: None, name: str, mode: str) -> None:
    prepare, action = MAKES[name]
    _sweep(name, mode, prepare, action, repeated=False)
