"""pytest fixtures for tests that need a real iommufd: devices, address spaces, the kernel's log, leaks.

Each skips the test, and says why, where the machine lacks what it needs. Devices are claimed for one test and given
back after it. Use them in a guest (``pyiommufd guest -- python -m pytest``), or on a machine whose devices of the ids
that the tests name may be taken; what the host is using is never taken.

    def test_dma(edu, iommufd, ioas, no_leaks, dmesg):
        edu.device.attach(ioas)
        ...

To watch every test of a module or folder: ``pytestmark = pytest.mark.usefixtures("dmesg", "no_leaks")``, or a
fixture of your own with ``autouse=True`` that asks for them.

Every session of pytest in the environment reads this module: what a fixture needs is imported when it is used.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from pyiommufd.host.discovery.groups import Group
    from pyiommufd.kernel.device.device import Device
    from pyiommufd.kernel.iommufd import IOMMUFD
    from pyiommufd.kernel.memory.ioas import IOAS
    from pyiommufd.testing.checks.claims import Claims
    from pyiommufd.testing.checks.dma_faults import DMAFaults
    from pyiommufd.testing.checks.dmesg import Dmesg
    from pyiommufd.testing.checks.leaks import LeakCheck
    from pyiommufd.testing.drivers.edu import EduDriver
    from pyiommufd.testing.mock import MockDevice

# The address spaces that fixtures have made. They are closed with the iommufd fixture and not by their own: the order
# in which a test names its fixtures must not decide whether a device is still attached then.
_address_spaces: weakref.WeakKeyDictionary[IOMMUFD, list[IOAS]] = weakref.WeakKeyDictionary()


def _way_out(request: pytest.FixtureRequest, argument: str) -> str:
    """What gives a test the machine that it lacks.

    Args:
        request: The test's.
        argument: What of the `guest` marker asks for that.
    """
    marker = f"@pytest.mark.guest({argument})"
    if request.config.pluginmanager.hasplugin("pyiommufd-in-guest"):
        return f"a guest that has it is asked for by {marker}"
    return f"run it by pytest --guest, with {marker} if the default guest has none either"


def _why(request: pytest.FixtureRequest, reasons: list[str]) -> str:
    """Why no device is taken: each of them has its reason, or there is none."""
    if reasons:
        return "\n  ".join(["none of those here is free:", *reasons])
    return f"there is none; {_way_out(request, 'devices=[…]')}"


def _watch_first(request: pytest.FixtureRequest) -> None:
    """Set up what watches the test before what it watches, so that it is torn down after it."""
    for name in ("dmesg", "no_leaks"):
        if name in request.fixturenames:
            request.getfixturevalue(name)


@pytest.fixture
def dmesg() -> Iterator[Dmesg]:
    """The kernel's log during the test, which fails where the kernel logs an error, a warning or a stack trace.

    ``dmesg.expect(regex)`` says what it may log.
    """
    from pyiommufd.testing.checks.dmesg import Dmesg

    try:
        watcher = Dmesg()
    except OSError as error:
        pytest.skip(f"the kernel's log cannot be read: {error}")
    try:
        yield watcher
        watcher.check()
    finally:
        watcher.close()


@pytest.fixture
def no_leaks() -> Iterator[LeakCheck]:
    """The test fails where it leaves fds of iommufds or devices open, registers mapped, or objects undestroyed.

    The last concerns the fixture ``iommufd``: when the test is over, and what fixtures made is closed, the next object
    must get the id that the first one got.
    """
    from pyiommufd.testing.checks.leaks import LeakCheck

    check = LeakCheck()
    yield check
    check.check()


@pytest.fixture
def dma_faults(request: pytest.FixtureRequest) -> Iterator[DMAFaults]:
    """The DMA faults that the kernel logs during the test. They are supplementary: see `DMAFaults`.

    A test that asks for them judges them itself: ``dmesg`` lets them pass.
    """
    from pyiommufd.testing.checks.dma_faults import LOG_PATTERN, DMAFaults

    if "dmesg" in request.fixturenames:
        request.getfixturevalue("dmesg").expect(LOG_PATTERN)
    try:
        faults = DMAFaults()
    except OSError as error:
        pytest.skip(f"the kernel's log cannot be read: {error}")
    with faults:
        yield faults


@pytest.fixture
def iommufd(request: pytest.FixtureRequest) -> Iterator[IOMMUFD]:
    """An open iommufd. Where the test asks for ``mock_device`` it is a `MockIOMMUFD`."""
    from pyiommufd.errors import AccessDeniedError, InUseError, NotFoundError
    from pyiommufd.kernel.iommufd import IOMMUFD
    from pyiommufd.testing.checks.leaks import LeakCheck
    from pyiommufd.testing.mock import MockIOMMUFD

    _watch_first(request)
    kind = MockIOMMUFD if "mock_device" in request.fixturenames else IOMMUFD
    try:
        opened = kind()
    except (NotFoundError, AccessDeniedError) as error:
        pytest.skip(f"{error}\n{_way_out(request, 'kernel=…')}")
    with opened:
        check = LeakCheck(opened) if "no_leaks" in request.fixturenames else None
        yield opened
        if check is not None and not opened.closed:
            for ioas in _address_spaces.pop(opened, ()):
                try:
                    ioas.close()
                except InUseError:
                    continue  # by a device that the test has left attached, which the check reports
            check.check()


@pytest.fixture
def ioas(iommufd: IOMMUFD) -> IOAS:
    """An address space of ``iommufd``."""
    made = iommufd.alloc_ioas()
    _address_spaces.setdefault(iommufd, []).append(made)
    return made


class DeviceFactory(Protocol):
    """What the fixture ``vfio_device`` is."""

    def __call__(self, vendor: int, device: int, *, bus_master: bool = False, watch_removal: bool = False) -> Device:
        """Bind a device of that vendor and device id to the fixture ``iommufd``; another one at each call.

        Its whole IOMMU group is claimed, and given back after the test. Of several devices one without a host driver
        is taken, whose group has the fewest members. Where none is there or free, the test is skipped.

        Args:
            vendor: The PCI vendor id.
            device: The PCI device id.
            bus_master: Let it do DMA as far as it is up to the device: the bind has forbidden it.
            watch_removal: Close it when the host wants it back, for tests of unbind and hot-unplug. That takes a
                thread, which a test that forks may not want.
        """


@pytest.fixture
def vfio_claims(request: pytest.FixtureRequest) -> Iterator[Claims]:
    """What the test's fixtures have claimed; given back when the devices are closed.

    A claim takes seconds. A project whose tests need the same devices over and over can keep them to the end, with a
    fixture of this name and ``scope="session"`` that does ``claims = Claims(); yield claims; claims.release()``.
    """
    from pyiommufd.testing.checks.claims import Claims

    _watch_first(request)
    claims = Claims()
    yield claims
    claims.release()


@pytest.fixture
def vfio_device(request: pytest.FixtureRequest, vfio_claims: Claims, iommufd: IOMMUFD) -> Iterator[DeviceFactory]:
    """A factory: ``vfio_device(0x1234, 0x11e8)`` claims such a device and binds it. See `DeviceFactory`."""
    from pyiommufd.errors import ClaimError
    from pyiommufd.testing.checks.claims import devices_by_id

    bound: list[Device] = []

    def bind(
        vendor: int | None = None, device: int | None = None, *, bus_master: bool = False, watch_removal: bool = False
    ) -> Device:
        if not isinstance(vendor, int) or not isinstance(device, int):
            raise TypeError("a PCI vendor id and device id are wanted, as in vfio_device(0x1234, 0x11e8)")
        reasons = []
        taken = [one.name for one in iommufd.devices]
        for candidate in devices_by_id(vendor, device):
            if candidate.name in taken:
                reasons.append(f"{candidate.name}: bound by this test already")
                continue
            try:
                vfio_claims.take(candidate)
            except ClaimError as error:
                reasons.append(f"{candidate.name}: {error}")
                continue
            made = iommufd.bind(candidate)
            bound.append(made)
            made.bus_master = made.bus_master or bus_master
            if watch_removal:
                made.watch_removal()
            return made
        pytest.skip(f"device {vendor:04x}:{device:04x}: {_why(request, reasons)}")

    yield bind
    for made in reversed(bound):
        made.close()


@dataclass(frozen=True)
class BoundGroup:
    """An IOMMU group of several devices, all bound: what the fixture ``shared_group`` is.

    Attributes:
        group: The group as it was before it was claimed.
        devices: Its devices, bridges aside, ordered by name; bound, not attached, bus mastering off.
        iommufd: What they are bound to.
    """

    group: Group
    devices: tuple[Device, ...]
    iommufd: IOMMUFD

    def of(self, vendor: int, device: int) -> tuple[Device, ...]:
        """Those of a vendor and device id."""
        return tuple(one for one in self.devices if (one.host.vendor_id, one.host.device_id) == (vendor, device))


@pytest.fixture
def shared_group(request: pytest.FixtureRequest, vfio_claims: Claims, iommufd: IOMMUFD) -> Iterator[BoundGroup]:
    """A group of several devices, claimed and all bound to ``iommufd``; of several groups the smallest.

    At least two of its devices have no host driver. A group without such is never taken: no test has named them.
    """
    from pyiommufd.errors import ClaimError
    from pyiommufd.testing.checks.claims import endpoints, shared_groups

    reasons = []
    for group in shared_groups():
        members = endpoints(group)
        try:
            vfio_claims.take(members[0])
        except ClaimError as error:
            reasons.append(f"group {group.id}: {error}")
            continue
        devices: list[Device] = []
        try:
            devices += (iommufd.bind(member) for member in members)
            yield BoundGroup(group, tuple(devices), iommufd)
        finally:
            for device in reversed(devices):
                device.close()
        return
    pytest.skip(f"an IOMMU group with several devices: {_why(request, reasons)}")


@pytest.fixture
def edu(vfio_device: DeviceFactory) -> Iterator[EduDriver]:
    """QEMU's edu device, driven: bound to ``iommufd``, bus mastering on, not attached."""
    from pyiommufd.testing.drivers.edu import DEVICE_ID, VENDOR_ID, EduDriver

    with EduDriver(vfio_device(VENDOR_ID, DEVICE_ID, bus_master=True)) as driver:
        yield driver


@pytest.fixture
def mock_device(iommufd: IOMMUFD, ioas: IOAS) -> Iterator[MockDevice]:
    """A device of the kernel's mock IOMMU, attached to ``ioas``. It takes a kernel with CONFIG_IOMMUFD_TEST."""
    from pyiommufd.errors import UnsupportedError
    from pyiommufd.testing.mock import MockIOMMUFD

    if not isinstance(iommufd, MockIOMMUFD):
        raise TypeError("mock_device takes an iommufd fixture that gives a MockIOMMUFD, not an IOMMUFD")
    try:
        device = iommufd.mock_device(ioas)
    except UnsupportedError as error:
        pytest.skip(str(error))
    with device:
        yield device
