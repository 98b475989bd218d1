"""Everything closed before and after everything else, twice, and used afterwards."""

from __future__ import annotations

import gc
import inspect
import io
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar
from uuid import UUID

import pytest

from pyiommufd import (
    HWPT,
    IOAS,
    IOMMUFD,
    VIOMMU,
    Claim,
    ClosedError,
    CloseError,
    Device,
    DeviceFeature,
    DeviceFile,
    DMABuffer,
    DMAMapping,
    FaultQueue,
    ForkedError,
    HostDevice,
    HWQueue,
    InUseError,
    Monitor,
    NestedHWPT,
    PagePermission,
    PageRequest,
    PageRequestGroup,
    VDevice,
    VEventQueue,
    plan_claim,
)
from pyiommufd.kernel.memory.mapping import DMAMappings
from pyiommufd.kernel.window import Window
from pyiommufd.testing.checks.leaks import LeakCheck
from pyiommufd.testing.mock import MockIOMMUFD, commands
from tests.guest.dma import IOVA
from tests.guest.mock_scene import MockScene
from tests.mock_data import cache_entry, iotlb_entry, stage1
from tests.sweeps import sample

PAGE = 4096


class Scene:
    """One of each: two devices of a group attached to an address space that has a buffer mapped in both ways.

    `owned` says which go when another is closed; `held` which keep another from being closed, and by what exception.
    """

    NAMES = (
        "iommufd",
        "device",
        "peer",
        "ioas",
        "hwpt",
        "queue",
        "mapping",
        "mappings",
        "window",
        "buffer",
        "file",
        "claim",
        "monitor",
    )
    OWNED: ClassVar[dict[str, tuple[str, ...]]] = {
        "iommufd": ("device", "peer", "window", "ioas", "hwpt", "queue", "mapping", "mappings"),
        "device": ("window",),
        "ioas": ("hwpt", "mapping", "mappings"),
    }
    HELD: ClassVar[dict[str, tuple[tuple[str, ...], type[Exception]]]] = {
        "ioas": (("device", "peer"), InUseError),
        "buffer": (("mapping", "mappings"), BufferError),
        "claim": (("file",), CloseError),
    }

    def __init__(self, first: HostDevice, peer: HostDevice, alone: HostDevice, claim: Claim | None) -> None:
        self.iommufd = IOMMUFD()
        self.device = self.iommufd.bind(first)
        self.peer = self.iommufd.bind(peer)
        self.ioas = self.iommufd.alloc_ioas()
        self.hwpt = self.device.alloc_hwpt(self.ioas)
        self.queue = self.iommufd.alloc_fault_queue()
        self.device.attach(self.ioas)
        self.peer.attach(self.ioas)
        self.buffer = DMABuffer(2 * PAGE, memfd=True)
        self.mapping = self.ioas.map(self.buffer, iova=IOVA)
        self.mappings = self.ioas.map_many(self.buffer, [(0, PAGE, 2 * IOVA), (PAGE, PAGE, 3 * IOVA)])
        self.window = self.device.region(0).map()
        self.file = DeviceFile(alone)
        self.claim = claim
        self.monitor = Monitor()
        self.open = {name for name in self.NAMES if name != "claim" or claim is not None}

    def close(self, name: str) -> None:
        """Close one, with the exception that the model says, and look at what is open then."""
        one = getattr(self, name)
        act = {"mapping": "unmap", "mappings": "unmap", "claim": "release"}.get(name, "close")
        holders, refusal = self.HELD.get(name, ((), Exception))
        if name in self.open and self.open.intersection(holders):
            with pytest.raises(refusal):
                getattr(one, act)()
        else:
            getattr(one, act)()
            self.open -= {name, *self.OWNED.get(name, ())}
        assert self.really_open() == self.open, f"after closing {name}"

    def really_open(self) -> set[str]:
        """What is open by what the objects say of themselves."""
        found = {name for name in ("mapping", "mappings") if getattr(self, name).mapped}
        if self.claim is not None and not self.claim.released:
            found.add("claim")
        rest = set(self.NAMES) - {"mapping", "mappings", "claim"}
        return found | {name for name in rest if not getattr(self, name).closed}

    def close_all(self) -> None:
        """Close the rest, apart from the claim, in an order in which nothing is refused."""
        for name in ("iommufd", "buffer", "file", "monitor"):
            if name in self.open:
                self.close(name)
        assert self.open <= {"claim"}


PAIRS = list(itertools.permutations(Scene.NAMES, 2))


@pytest.fixture
def no_leaks_here() -> Iterator[None]:
    with LeakCheck():
        yield


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in Scene.NAMES if name != "claim"])
def test_closed_before_and_after_every_other(
    claimed: Claim,
    claimed_alone: Claim,
    no_leaks_here: None,
    first: HostDevice,
    peer: HostDevice,
    alone: HostDevice,
    name: str,
) -> None:
    others = [other for one, other in PAIRS if one == name and other != "claim"]
    for other in sample(f"stress.closing[{name}]", others, 3):
        scene = Scene(first, peer, alone, None)
        try:
            # The first of them once more: it has nothing left to do, or is still refused, or can be closed now.
            for one in (name, other, name):
                scene.close(one)
        finally:
            scene.close_all()


@pytest.mark.long
def test_a_claim_closed_before_and_after_every_other(
    no_leaks_here: None, first: HostDevice, peer: HostDevice, alone: HostDevice
) -> None:
    """The claim is that of the device that is open and not bound; the group of the others has one of its own."""
    with plan_claim(first).apply(), plan_claim(alone).apply() as claim:
        # The file last: as long as it is open the claim is refused to be released, and serves the next turn too.
        others = [name for name in Scene.NAMES if name not in ("claim", "file")]
        for other in (*sample("stress.closing[claim]", others, 3), "file"):
            scene = Scene(first, peer, alone, claim)
            try:
                for one in ("claim", other, "claim", "claim"):
                    scene.close(one)
            finally:
                scene.close_all()
        assert claim.released


@pytest.mark.long
def test_a_claim_of_bound_devices_is_not_released(
    no_leaks_here: None, first: HostDevice, peer: HostDevice, alone: HostDevice
) -> None:
    claim = plan_claim([first, alone]).apply()
    scene = Scene(first, peer, alone, None)
    try:
        for name in ("file", "window", "peer"):
            with pytest.raises(CloseError) as caught:
                claim.release()
            assert first.name in str(caught.value)
            assert not claim.released
            scene.close(name)
        # What was given back already is claimed no more; what is still bound is still there to be used.
        assert scene.device.region(0).size == 1 << 20
    finally:
        scene.close_all()
        claim.release()
    assert claim.released
    assert alone.refreshed().driver is None


# What may still be asked of an object that is closed: what it was, and whether it is closed.
KERNEL_OBJECT = frozenset({"closed", "id", "iommufd", "users", "uses"})
INERT: dict[type, frozenset[str]] = {
    IOMMUFD: frozenset({"closed", "pid", "in_child", "from_fd", "devices", "objects", "shared"}),
    Device: frozenset(
        {"closed", "pid", "in_child", "id", "name", "host", "iommufd", "bind_change"}
        | {"page_table", "page_table_for", "page_tables", "interrupts", "reset_methods"}
        | {"dma_logging", "from_fd", "graphics", "low_power", "migration"}
    ),
    IOAS: KERNEL_OBJECT | {"mappings", "hwpts", "ioas"},
    HWPT: KERNEL_OBJECT | {"ioas", "host", "flags", "fault_queue"},
    FaultQueue: KERNEL_OBJECT | {"unanswered"},
    NestedHWPT: KERNEL_OBJECT | {"ioas", "parent", "viommu", "host", "data", "flags", "fault_queue"},
    VIOMMU: KERNEL_OBJECT | {"type", "parent", "host", "data", "decoded"},
    VDevice: KERNEL_OBJECT | {"viommu", "device", "virtual_id"},
    VEventQueue: KERNEL_OBJECT | {"viommu", "type", "depth"},
    HWQueue: KERNEL_OBJECT | {"viommu", "type", "index", "memory"},
    DMAMapping: frozenset({"iova", "length", "mapped", "page_sizes", "ranges", "revoked"}),
    DMAMappings: frozenset({"iovas", "length", "mapped", "ranges", "revoked"}),
    Window: frozenset({"closed", "offset", "length"}),
    DeviceFile: frozenset({"closed", "pid", "in_child", "name", "device", "from_fd"}),
    Claim: frozenset({"devices", "kept", "plan", "released"}),
    Monitor: frozenset({"closed"}),
}
VIRTUAL = (NestedHWPT, VIOMMU, VDevice, VEventQueue, HWQueue)
CLOSING: dict[type, str] = {DMAMapping: "unmap", DMAMappings: "unmap", Claim: "release"}


def uses(scene: Scene, other: IOAS) -> dict[type, dict[str, Callable[[], object]]]:
    """A call of every public method and property that does something, with arguments that were good before."""
    iommufd, device, ioas, hwpt, window = scene.iommufd, scene.device, scene.ioas, scene.hwpt, scene.window
    fresh = DMABuffer(PAGE, memfd=True)
    return {
        IOMMUFD: {
            "fileno": iommufd.fileno,
            "bind": lambda: iommufd.bind(device.host),
            "alloc_ioas": iommufd.alloc_ioas,
            "alloc_fault_queue": iommufd.alloc_fault_queue,
            "rlimit_mode": lambda: iommufd.rlimit_mode,
            "rlimit_mode=": lambda: setattr(iommufd, "rlimit_mode", True),
            "vfio_ioas": lambda: iommufd.vfio_ioas,
            "vfio_ioas=": lambda: setattr(iommufd, "vfio_ioas", None),
            "change_process": iommufd.change_process,
        },
        Device: {
            "fileno": device.fileno,
            "attach": lambda: device.attach(other),
            "replace": lambda: device.replace(other),
            "detach": device.detach,
            "preview_attach": lambda: device.preview_attach(other),
            "hw_info": device.hw_info,
            "alloc_hwpt": lambda: device.alloc_hwpt(other),
            "alloc_viommu": lambda: device.alloc_viommu(hwpt, commands.VIOMMU_TYPE),
            "region": lambda: device.region(0),
            "regions": lambda: device.regions,
            "config": lambda: device.config,
            "bus_master": lambda: device.bus_master,
            "bus_master=": lambda: setattr(device, "bus_master", True),
            "memory_decode": lambda: device.memory_decode,
            "memory_decode=": lambda: setattr(device, "memory_decode", True),
            "info": device.info,
            "reset": device.reset,
            "hot_reset": device.hot_reset,
            "hot_reset_info": device.hot_reset_info,
            "watch_removal": device.watch_removal,
            "feature": lambda: device.feature(DeviceFeature.LOW_POWER_EXIT).probe(),
            "set_vf_token": lambda: device.set_vf_token(UUID(int=1)),
            "zpci_error": device.zpci_error,
        },
        IOAS: {
            "map": lambda: ioas.map(fresh, iova=IOVA),
            "map_many": lambda: ioas.map_many(fresh, [(0, PAGE, IOVA)]),
            "map_file": lambda: ioas.map_file(fresh, PAGE),
            "physical_address": lambda: ioas.physical_address(IOVA),
            "copy_from": lambda: ioas.copy_from(other, IOVA, PAGE),
            "unmap": lambda: ioas.unmap(IOVA, PAGE),
            "unmap_all": ioas.unmap_all,
            "iova_ranges": ioas.iova_ranges,
            "iova_alignment": lambda: ioas.iova_alignment,
            "allow_iovas": lambda: ioas.allow_iovas([]),
            "huge_pages": lambda: ioas.huge_pages,
            "huge_pages=": lambda: setattr(ioas, "huge_pages", True),
        },
        HWPT: {
            "set_dirty_tracking": lambda: hwpt.set_dirty_tracking(True),
            "dirty_bitmap": lambda: hwpt.dirty_bitmap(IOVA, PAGE),
            "alloc_nested": lambda: hwpt.alloc_nested(stage1()),
        },
        FaultQueue: {
            "fileno": scene.queue.fileno,
            "read": lambda: scene.queue.read(0),
            "respond": lambda: scene.queue.respond(
                PageRequestGroup((PageRequest(None, None, PagePermission(0), 0, 0),), 0, 0)
            ),
        },
        DMAMapping: {},
        DMAMappings: {},
        Window: {
            **{f"read{width}": partial(getattr(window, f"read{width}"), 0) for width in (8, 16, 32, 64)},
            **{f"write{width}": partial(getattr(window, f"write{width}"), 0, 0) for width in (8, 16, 32, 64)},
            "read": lambda: window.read(0, 8),
            "readinto": lambda: window.readinto(0, bytearray(8)),
            "write": lambda: window.write(0, bytes(8)),
        },
        DeviceFile: {"fileno": scene.file.fileno},
        Claim: {},
        Monitor: {"fileno": scene.monitor.fileno, "poll": lambda: scene.monitor.poll(0)},
    }


def virtual_uses(scene: MockScene) -> dict[type, dict[str, Callable[[], object]]]:
    """The same of what only the mock IOMMU has here."""
    nested, viommu, events = scene.nested, scene.viommu, scene.events
    entry = cache_entry(0, scene.vdevice.virtual_id)
    first, second = scene.first.memory, scene.second
    return {
        HWPT: {"alloc_nested": lambda: scene.parent.alloc_nested(stage1())},
        FaultQueue: {"respond": lambda: scene.faults.respond(scene.request)},
        NestedHWPT: {
            "invalidate": lambda: nested.invalidate([iotlb_entry(0)]),
            "invalidate nothing": lambda: nested.invalidate([]),
        },
        VIOMMU: {
            "alloc_nested": lambda: viommu.alloc_nested(stage1()),
            "alloc_vdevice": lambda: viommu.alloc_vdevice(scene.peer, 1),
            "alloc_event_queue": lambda: viommu.alloc_event_queue(commands.VEVENTQ_TYPE),
            "alloc_hw_queue": lambda: viommu.alloc_hw_queue(
                commands.HW_QUEUE_TYPE, second.index, first.start, first.last - first.start + 1
            ),
            "invalidate": lambda: viommu.invalidate([entry]),
            "invalidate nothing": lambda: viommu.invalidate([]),
            "map": lambda: viommu.map(*scene.registers),
        },
        VDevice: {},
        VEventQueue: {"fileno": events.fileno, "read": lambda: events.read(0)},
        HWQueue: {},
    }


def check_complete(kind: type, calls: dict[str, Callable[[], object]]) -> None:
    public = {name for name, _ in inspect.getmembers_static(kind) if not name.startswith("_")}
    used = {name.rstrip("=").partition(" ")[0] for name in calls}
    setters = {name.rstrip("=") for name in calls if name.endswith("=")}
    assert public - used - INERT[kind] - {CLOSING.get(kind, "close")} == set()
    settable = {
        name for name, value in inspect.getmembers_static(kind, lambda v: isinstance(v, property)) if value.fset
    }
    assert settable == setters


@pytest.mark.long
@pytest.mark.parametrize("kind", VIRTUAL, ids=lambda kind: kind.__name__)
def test_the_table_of_virtual_uses_is_complete(kind: type) -> None:
    with MockIOMMUFD() as iommufd:
        check_complete(kind, virtual_uses(MockScene(iommufd))[kind])


@pytest.mark.long
@pytest.mark.parametrize("kind", [kind for kind in INERT if kind not in VIRTUAL], ids=lambda kind: kind.__name__)
def test_the_table_of_uses_is_complete(
    claimed: Claim, claimed_alone: Claim, first: HostDevice, peer: HostDevice, alone: HostDevice, kind: type
) -> None:
    """A public name that is added to a class has to be said here to be inert, or used after close."""
    scene = Scene(first, peer, alone, None)
    try:
        check_complete(kind, uses(scene, scene.ioas)[kind])
    finally:
        scene.close_all()


def check_refused(calls: dict[str, Callable[[], object]], error: type[Exception], words: str) -> None:
    """Each of these calls raises this."""
    for name, call in calls.items():
        with pytest.raises(error, match=words):
            pytest.fail(f"{name} gave {call()!r}")


def test_virtual_objects_are_not_used_after_close(no_leaks_here: None) -> None:
    """Closed with their iommufd, or by themselves."""
    iommufd = MockIOMMUFD()
    scene = MockScene(iommufd)
    calls = virtual_uses(scene)
    iommufd.close()
    for kind, named in calls.items():
        check_refused({f"{kind.__name__}.{name}": call for name, call in named.items()}, ClosedError, "closed")
    for name in ("nested", "viommu", "virtual", "vdevice", "events", "first", "second", "window", "faults"):
        getattr(scene, name).close()
        if name != "window":
            assert "closed" in repr(getattr(scene, name))
    scene.buffer.close()

    for name in ("parent", "nested", "viommu", "vdevice", "events", "first", "second", "faults"):
        with MockIOMMUFD() as iommufd:
            scene = MockScene(iommufd)
            for other in ("device", "second", "nested") if name in ("first", "faults") else ("device",):
                scene.close(other)
            scene.close(name)
            kind = type(getattr(scene, name))
            named = virtual_uses(scene)[kind]
            check_refused({f"{kind.__name__}.{use}": call for use, call in named.items()}, ClosedError, "closed")


def test_nothing_is_used_in_a_forked_child(
    claimed: Claim,
    claimed_alone: Claim,
    no_leaks_here: None,
    first: HostDevice,
    peer: HostDevice,
    alone: HostDevice,
    in_child: Callable[[Callable[[], Any]], Any],
) -> None:
    scene = Scene(first, peer, alone, None)
    try:
        calls = uses(scene, scene.ioas)
        del calls[Monitor]  # it is of no kernel object
        with MockIOMMUFD() as iommufd:
            virtual = virtual_uses(MockScene(iommufd))

            def child() -> None:
                for table in (calls, virtual):
                    for kind, named in table.items():
                        each = {f"{kind.__name__}.{name}": call for name, call in named.items()}
                        check_refused(each, ForkedError, "forked child")

            in_child(child)
    finally:
        scene.close_all()


def test_use_after_close_is_refused_whatever_was_used(
    claimed: Claim, claimed_alone: Claim, no_leaks_here: None, first: HostDevice, peer: HostDevice, alone: HostDevice
) -> None:
    scene = Scene(first, peer, alone, None)
    calls = uses(scene, scene.ioas)
    region = scene.device.region(0)
    scene.close_all()
    calls[Device] |= {
        "Region.read": lambda: region.read(0, 4),
        "Region.write": lambda: region.write(0, bytes(4)),
        "Region.map": region.map,
        "Region.export_dma_buf": region.export_dma_buf,
        "DMALogging.start": lambda: scene.device.dma_logging.start([(0, PAGE - 1)]),
        "DMALogging.stop": scene.device.dma_logging.stop,
        "Graphics.plane": scene.device.graphics.plane,
        "LowPower.enter": scene.device.low_power.enter,
        "LowPower.exit": scene.device.low_power.exit,
        "Migration.state": lambda: scene.device.migration.state,
        "Migration.save": lambda: scene.device.migration.save(io.BytesIO()),
    }
    for kind, named in calls.items():
        for name, call in named.items():
            with pytest.raises(ClosedError, match="closed"):
                pytest.fail(f"{kind.__name__}.{name} gave {call()!r} after the close")
    # In a for loop a closed monitor has ended, as a closed file would not have; documented by its iteration.
    assert list(scene.monitor) == []
    for one in (getattr(scene, name) for name in Scene.NAMES if name not in ("claim", "buffer", "mapping", "mappings")):
        one.close()
        assert "closed" in repr(one) or isinstance(one, Monitor)
    scene.mapping.unmap()
    scene.mappings.unmap()
    with pytest.raises(ValueError, match="closed"):
        scene.buffer.read_byte()
    assert (scene.mapping.revoked, scene.mappings.revoked) == (False, False)
    assert (scene.mapping.mapped, scene.mappings.mapped, scene.mappings.iovas) == (False, False, (2 * IOVA, 3 * IOVA))


def test_objects_of_a_closed_owner_raise_the_same(
    claimed: Claim, claimed_alone: Claim, first: HostDevice, peer: HostDevice, alone: HostDevice
) -> None:
    """Closed by themselves, while their iommufd is open: as when it was closed."""
    for name in ("device", "ioas", "hwpt", "queue", "window"):
        scene = Scene(first, peer, alone, None)
        try:
            other = scene.iommufd.alloc_ioas()
            calls = uses(scene, other)
            scene.device.detach()
            scene.peer.detach()
            scene.close(name) if name != "ioas" else scene.ioas.close()
            kind: Any = type(getattr(scene, name))
            for use, call in calls[kind].items():
                with pytest.raises(ClosedError, match="closed"):
                    pytest.fail(f"{kind.__name__}.{use} gave {call()!r} after the close")
        finally:
            scene.iommufd.close()
            scene.buffer.close()
            scene.file.close()
            scene.monitor.close()


def test_a_failing_close_releases_the_rest_and_reports_every_failure(
    claimed: Claim, first: HostDevice, peer: HostDevice, no_leaks_here: None
) -> None:
    """The fds are closed by somebody else first, so that the kernel answers EBADF for each."""
    iommufd = IOMMUFD()
    devices = [iommufd.bind(first), iommufd.bind(peer)]
    ioas = iommufd.alloc_ioas()
    buffer = DMABuffer(PAGE)
    mapping = ioas.map(buffer)
    windows = [device.region(0).map() for device in devices]
    owned: list[Any] = [iommufd, ioas, *devices, *windows]
    for fd in (iommufd.fileno(), *(device.fileno() for device in devices)):
        os.close(fd)
    with pytest.raises(CloseError) as caught:
        iommufd.close()
    # Two devices, DESTROY of the address space, the fd of the iommufd.
    assert [getattr(error, "errno", None) for error in caught.value.errors] == [9] * 4
    assert str(caught.value).count("EBADF") + str(caught.value).count("Bad file descriptor") >= 4
    assert all(one.closed for one in owned)
    assert not mapping.mapped
    buffer.close()
    iommufd.close()
    with IOMMUFD() as again:
        again.bind(first).close()


@pytest.mark.parametrize("kind", ["iommufd", "device", "file"])
def test_what_is_dropped_unclosed_warns_and_is_closed(
    claimed: Claim, no_leaks_here: None, first: HostDevice, kind: str
) -> None:
    gc.collect()  # what others have dropped warns for itself
    with ExitStack() as stack:
        if kind == "iommufd":
            made: list[object] = [IOMMUFD()]
        elif kind == "file":
            made = [DeviceFile(first)]
        else:
            iommufd = stack.enter_context(IOMMUFD())
            made = [iommufd.bind(first)]
            # The iommufd holds what it owns: drop that reference as well.
            iommufd._forget(made[0])  # type: ignore[arg-type]
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            made.clear()
            gc.collect()
        assert [warning.category for warning in seen] == [ResourceWarning]
        assert "unclosed" in str(seen[0].message)
    with IOMMUFD() as again:
        again.bind(first).close()


@pytest.mark.long
def test_everything_dropped_at_once_is_closed(claimed: Claim, first: HostDevice, no_leaks_here: None) -> None:
    """An iommufd and its device refer to each other: the garbage collector takes both, in whatever order."""
    gc.collect()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        iommufd = IOMMUFD()
        device = iommufd.bind(first)
        ioas = iommufd.alloc_ioas()
        device.attach(ioas)
        mapping = ioas.map(DMABuffer(PAGE), iova=IOVA)
        window = device.region(0).map()
        del iommufd, device, ioas, mapping, window
        gc.collect()
    assert [warning.category for warning in seen] == [ResourceWarning] * 2
    with IOMMUFD() as again:
        again.bind(first).close()
