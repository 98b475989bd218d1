"""Sleep of a device that nobody uses for a while."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Literal, overload

from pyiommufd import diagnose, uapi
from pyiommufd.errors import IoctlError
from pyiommufd.host.discovery.power import power_state, runtime_status
from pyiommufd.kernel.device.features.feature import DeviceFeature, Feature, FeatureAccess
from pyiommufd.kernel.interrupts.eventfd import EventFD
from pyiommufd.uapi import device_ioctls

if TYPE_CHECKING:
    from pyiommufd.kernel.device.device import Device


class LowPower:
    """The sleep of a bound device. It is `Device.low_power`.

    From `enter` on the kernel lets the device sleep while nobody uses it: in D3hot or deeper where it can. It sleeps a
    moment later (`asleep`), unless something else on the host keeps it awake, as ``on`` in sysfs ``power/control``.

    - Accesses to its windows are a `RegionFaultError` until `exit`, and do not wake it.
    - A read or write of a region and any request to the device wake it, `Device.info` among them. Afterwards it sleeps
      again; but with ``wakeup`` low power has ended by that: the device stays awake, and its windows work again.
    - So do a reset of its bus, and the device itself where it can (PME).
    - Attachment, mappings, interrupts that are enabled, and the configuration space with bus mastering outlast it; a
      device that is asleep does no DMA and raises no interrupt. Registers may be lost with the power: set the device up
      again. Have it idle before, with no DMA under way.
    - The dma-bufs that it has exported are revoked, and cannot be mapped until `exit`, also where a wakeup has ended
      low power (Linux 7.3).

    Closing the device ends it.

    Thread safety: everything here may be used from any thread.
    """

    __slots__ = ("_device",)

    def __init__(self, device: Device) -> None:
        self._device = device

    @overload
    def enter(self, wakeup: Literal[False] = False) -> None: ...

    @overload
    def enter(self, wakeup: Literal[True] | EventFD) -> EventFD: ...

    @overload
    def enter(self, wakeup: bool | EventFD) -> EventFD | None: ...

    def enter(self, wakeup: bool | EventFD = False) -> EventFD | None:
        """Let the device sleep (VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, or LOW_POWER_ENTRY_WITH_WAKEUP).

        Args:
            wakeup: Have the first wake-up end low power, and signal an eventfd: this one, or for True a new one. Of an
                eventfd of others, such as KVM's: ``EventFD(fd)``.

        Returns:
            The eventfd, which the caller closes; None without one.

        Raises:
            UnsupportedError: The device or its driver has no low power.
            IoctlError: EINVAL: it is in low power already, without wakeup. With wakeup, this call wakes it first.
            TypeError: The wakeup is neither a bool nor an `EventFD`.
            ClosedError, ForkedError: The device or the eventfd is closed, or belongs to the parent process.
        """
        if not isinstance(wakeup, bool | EventFD):
            raise TypeError(f"wakeup is True, False or an EventFD, not {type(wakeup).__name__}")
        if not wakeup:
            self._set(DeviceFeature.LOW_POWER_ENTRY)
            return None
        self._device._live()
        event = wakeup if isinstance(wakeup, EventFD) else EventFD()
        try:
            self._set(DeviceFeature.LOW_POWER_ENTRY_WITH_WAKEUP, event)
        except BaseException:
            if event is not wakeup:
                event.close()
            raise
        return event

    def exit(self) -> None:
        """Wake the device, and keep it awake (VFIO_DEVICE_FEATURE_LOW_POWER_EXIT). Does nothing where it is awake.

        What it has exported as dma-bufs can be mapped again then, if its memory decode is on.

        Raises:
            UnsupportedError: The device or its driver has no low power.
            IoctlError: The kernel refused.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        self._set(DeviceFeature.LOW_POWER_EXIT)

    @property
    def asleep(self) -> bool:
        """Whether the device sleeps at this moment (sysfs ``power/runtime_status``). Asking does not wake it."""
        return runtime_status(self._device.host) == "suspended"

    @property
    def power_state(self) -> str:
        """The PCI power state, as the kernel knows it, such as ``D0`` and ``D3hot`` (sysfs ``power_state``).

        It stays D0 where a device sleeps that has no power management of its own; empty where it is no PCI device.
        """
        return power_state(self._device.host)

    def _set(self, number: DeviceFeature, event: EventFD | None = None) -> None:
        fd = self._device._live()
        given = None if event is None else event._live()
        data = b"" if given is None else bytes(8)  # struct vfio_device_low_power_entry_with_wakeup: the fd comes first
        try:
            device_ioctls.feature_files(fd, number, uapi.VFIO_DEVICE_FEATURE_SET, data, 0, given)
        except IoctlError as error:
            self._device._live()
            if event is not None:
                event._live()
            causes = (diagnose.IN_LOW_POWER.general,) if error.errno == errno.EINVAL else ()
            raise Feature(self._device, number).refused(error, FeatureAccess.SET, causes) from None

    def __repr__(self) -> str:
        return f"<LowPower of {self._device.name}, {'asleep' if self.asleep else 'awake'}>"
