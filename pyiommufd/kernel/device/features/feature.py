"""A feature of a bound device, of whatever kind: whether it has it, and the bytes that go in and out."""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from pyiommufd import diagnose, uapi
from pyiommufd.errors import Cause, IoctlError, UnsupportedError, ioctl_error
from pyiommufd.kernel.memory.arguments import whole
from pyiommufd.uapi import device_ioctls
from pyiommufd.uapi.device_ioctls import struct_size

if TYPE_CHECKING:
    from pyiommufd.kernel.device.device import Device

REQUEST = "VFIO_DEVICE_FEATURE"


class DeviceFeature(IntEnum):
    """The features that Linux 7.3 knows (VFIO_DEVICE_FEATURE_*)."""

    PCI_VF_TOKEN = uapi.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN
    MIGRATION = uapi.VFIO_DEVICE_FEATURE_MIGRATION
    MIG_DEVICE_STATE = uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
    LOW_POWER_ENTRY = uapi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY
    LOW_POWER_ENTRY_WITH_WAKEUP = uapi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP
    LOW_POWER_EXIT = uapi.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT
    DMA_LOGGING_START = uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_START
    DMA_LOGGING_STOP = uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP
    DMA_LOGGING_REPORT = uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT
    MIG_DATA_SIZE = uapi.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE
    BUS_MASTER = uapi.VFIO_DEVICE_FEATURE_BUS_MASTER
    DMA_BUF = uapi.VFIO_DEVICE_FEATURE_DMA_BUF
    MIG_PRECOPY_INFOv2 = uapi.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2
    ZPCI_ERROR = uapi.VFIO_DEVICE_FEATURE_ZPCI_ERROR


class FeatureAccess(IntFlag):
    """What can be done with a feature (VFIO_DEVICE_FEATURE_GET, _SET)."""

    GET = uapi.VFIO_DEVICE_FEATURE_GET
    SET = uapi.VFIO_DEVICE_FEATURE_SET


# Of these the kernel opens a file, whose fd would be lost among the bytes.
_OPENS_A_FILE: dict[tuple[int, FeatureAccess], str] = {
    (DeviceFeature.MIG_DEVICE_STATE, FeatureAccess.SET): "migration.set_state()",
    (DeviceFeature.DMA_BUF, FeatureAccess.GET): "region(…).export_dma_buf()",
}


# The structs of those that have one, by which a refused argument is told from one that is too short.
_STRUCTS: dict[int, str] = {
    DeviceFeature.MIGRATION: "struct vfio_device_feature_migration",
    DeviceFeature.MIG_DEVICE_STATE: "struct vfio_device_feature_mig_state",
    DeviceFeature.LOW_POWER_ENTRY_WITH_WAKEUP: "struct vfio_device_low_power_entry_with_wakeup",
    DeviceFeature.DMA_LOGGING_START: "struct vfio_device_feature_dma_logging_control",
    DeviceFeature.DMA_LOGGING_REPORT: "struct vfio_device_feature_dma_logging_report",
    DeviceFeature.MIG_DATA_SIZE: "struct vfio_device_feature_mig_data_size",
    DeviceFeature.BUS_MASTER: "struct vfio_device_feature_bus_master",
    DeviceFeature.ZPCI_ERROR: "struct vfio_device_feature_zpci_err",
}
_MOST = 1 << 20  # bytes of a struct: none of the kernel's is anywhere near


class Feature:
    """A feature of a bound device (VFIO_DEVICE_FEATURE). Made by `Device.feature`.

    Here are its plain bytes; what has a method or an attribute of its own on `Device` is better used by that.

    Thread safety: everything here may be used from any thread.

    Args:
        device: The device.
        number: The feature; one that this version of pyiommufd does not know is asked for by its number.

    Attributes:
        number: Its number, a `DeviceFeature` where it has a name.
    """

    __slots__ = ("_device", "number")

    number: int

    def __init__(self, device: Device, number: int) -> None:
        number = whole(number, "the number of a feature")
        if not 0 <= number <= uapi.VFIO_DEVICE_FEATURE_MASK:
            raise ValueError(f"the number of a feature is from 0 to {uapi.VFIO_DEVICE_FEATURE_MASK}, not {number}")
        self._device = device
        self.number = DeviceFeature(number) if number in list(DeviceFeature) else number

    @property
    def name(self) -> str:
        """The kernel's name of it, or its number where it has none here."""
        return self.number.name if isinstance(self.number, DeviceFeature) else f"feature {self.number}"

    def probe(self) -> FeatureAccess:
        """What the device supports of it, empty where nothing. Changes nothing.

        Raises:
            IoctlError: The kernel refused for another reason than that the device does not support it.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        return FeatureAccess(sum(one for one in FeatureAccess if self._supports(one)))

    def _supports(self, access: FeatureAccess) -> bool:
        try:
            device_ioctls.feature(self._device._live(), self.number, access | uapi.VFIO_DEVICE_FEATURE_PROBE)
        except IoctlError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL):
                return False
            raise ioctl_error(REQUEST, error.errno or 0, self._target("probe")) from None
        return True

    def get(self, size: int, data: bytes = b"") -> bytes:
        """Get its data.

        Args:
            size: Bytes of the data's struct; up to 1 MiB.
            data: What the struct holds before, where the feature takes something; the rest of it is 0.

        Returns:
            The struct.

        Raises:
            UnsupportedError: The device does not have it, or cannot be asked for it.
            IoctlError: The kernel refused for another reason.
            ValueError: The size is no such number, or less than the data; or it is a feature whose get opens a file.
            TypeError: The size is no int, or the data are no bytes.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        data, size = _checked(data), whole(size, "size")
        if not len(data) <= size <= _MOST:
            raise ValueError(f"size is from {len(data)}, the bytes of data, to {_MOST}, not {size}")
        return self._call(FeatureAccess.GET, data.ljust(size, b"\0"))

    def set(self, data: bytes = b"") -> bytes:
        """Set its data, or do what it stands for.

        Args:
            data: The feature's struct; none where it has none.

        Returns:
            The struct, as the kernel left it.

        Raises:
            UnsupportedError, IoctlError, TypeError, ClosedError, ForkedError: As for `get`.
            ValueError: It is a feature whose set opens a file.
        """
        return self._call(FeatureAccess.SET, _checked(data))

    def _call(self, access: FeatureAccess, data: bytes) -> bytes:
        fd = self._device._live()
        if other := _OPENS_A_FILE.get((self.number, access)):
            raise ValueError(f"{self.name} opens a file, whose fd would be lost here: use {other} of the device")
        try:
            return device_ioctls.feature(fd, self.number, access, data)
        except IoctlError as error:
            causes = self._wrong_argument(data) if error.errno == errno.EINVAL else ()
            raise self.refused(error, access, causes) from None

    def _wrong_argument(self, data: bytes) -> tuple[Cause, ...]:
        """Why the kernel answers EINVAL for an argument of what the device supports."""
        size = struct_size(_STRUCTS[self.number]) if self.number in _STRUCTS else 0
        size = 16 if self.number == DeviceFeature.PCI_VF_TOKEN else size
        if len(data) < size:
            return (Cause(f"the struct of {self.name} has {size} bytes", f"{len(data)} were given", f"give {size}"),)
        if self.number in (DeviceFeature.LOW_POWER_ENTRY, DeviceFeature.LOW_POWER_ENTRY_WITH_WAKEUP):
            return (diagnose.IN_LOW_POWER.general,)
        return (Cause("the driver does not take such values", fix=f"see linux/vfio.h for those of {self.name}"),)

    def refused(self, error: IoctlError, access: FeatureAccess, causes: tuple[Cause, ...] = ()) -> IoctlError:
        """The exception for a request that the kernel refused.

        EINVAL is also its answer where the device does not support what was asked for (Linux 7.3, include/linux/vfio.h,
        vfio_check_feature): a probe tells that from a wrong argument.

        Args:
            error: As it came from the kernel.
            access: What was asked for.
            causes: Why, as far as the caller knows; for other errors than that it is not supported.
        """
        code, words = error.errno or 0, (access.name or "").lower()
        target = self._target(words)
        if code == errno.ENOTTY or (code == errno.EINVAL and not self._supports(access)):
            if others := self.probe():
                summary, way = f"the device does not support to {words} it", f"{others.name} is what it supports"
            else:
                summary, way = f"{self._device.name} does not have {self.name}", "do without"
            return UnsupportedError(REQUEST, code, target, (Cause(summary, fix=way),))
        return ioctl_error(REQUEST, code, target, causes)

    def _target(self, words: str) -> str:
        return f"{self._device.name} ({words} {self.name})"

    def __repr__(self) -> str:
        return f"<Feature {int(self.number)} {self.name} of {self._device.name}>"


def _checked(data: bytes) -> bytes:
    try:
        return bytes(memoryview(data))
    except TypeError:
        raise TypeError(f"the data of a feature are bytes, not {type(data).__name__}") from None
