"""A device bound to an iommufd."""

from __future__ import annotations

import errno
import operator
import sys
import uuid
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self

from pyiommufd import diagnose, uapi
from pyiommufd.errors import Cause, CloseError, IoctlError, UnsupportedError, ioctl_error
from pyiommufd.host.discovery.reset import reset_methods, set_reset_methods
from pyiommufd.host.discovery.vf_token import as_token
from pyiommufd.kernel.device.attachable import Attachable
from pyiommufd.kernel.device.config_space import Command, ConfigSpace
from pyiommufd.kernel.device.device_file import device_of_fd
from pyiommufd.kernel.device.features.dma_logging import DMALogging
from pyiommufd.kernel.device.features.feature import DeviceFeature, Feature, FeatureAccess
from pyiommufd.kernel.device.features.low_power import LowPower
from pyiommufd.kernel.device.features.migration import Migration
from pyiommufd.kernel.interrupts.interrupts import Interrupts
from pyiommufd.kernel.memory.arguments import check_bool
from pyiommufd.kernel.objects import Context
from pyiommufd.kernel.pagetables.attachment import ChangeKind
from pyiommufd.uapi import device_ioctls, ioctls
from pyiommufd.uapi.ioctls import Fd

# What few programs use of a device is imported where it is used.
if TYPE_CHECKING:
    from pyiommufd.host.discovery.devices import HostDevice
    from pyiommufd.kernel.device.device_info import DeviceInfo
    from pyiommufd.kernel.device.features.dma_buf import DMABuf
    from pyiommufd.kernel.device.graphics import Graphics, PlaneBuffer
    from pyiommufd.kernel.device.hot_reset import HotResetInfo
    from pyiommufd.kernel.device.region import Region
    from pyiommufd.kernel.device.removal import RemovalWaiter, RemovalWatch
    from pyiommufd.kernel.iommufd import IOMMUFD
    from pyiommufd.kernel.kernel_object import KernelObject
    from pyiommufd.kernel.window import Window


class Device(Attachable):
    """A device bound to an iommufd. Made by `IOMMUFD.bind`, or `from_fd`; bound until it is closed.

    While it is bound and no member of its group is attached, no member can do DMA. Where no IOMMU covers it
    (`HostDevice.without_iommu`) its DMA is never blocked: all its changes are `ChangeKind.UNBLOCKED`.

    Thread safety: everything here may be used from any thread.

    Attributes:
        bind_change: Whose DMA the bind has changed: blocked it, for all members of the group, if it was the
            group's first.
        interrupts: Its interrupts.
        dma_logging: The log of its DMA writes, where the device keeps one.
        low_power: Its sleep while nobody uses it.
        migration: Its state, to be saved and loaded.
    """

    __slots__ = ("_children", "_removal", "dma_logging", "interrupts", "low_power", "migration")

    interrupts: Interrupts
    dma_logging: DMALogging
    low_power: LowPower
    migration: Migration

    def __init__(self, iommufd: IOMMUFD, host: HostDevice) -> None:
        # First: a fork in another thread may find it as soon as it is a handle.
        self._children: weakref.WeakKeyDictionary[Window | DMABuf | PlaneBuffer, None] = weakref.WeakKeyDictionary()
        self._removal: RemovalWaiter | None = None
        self.interrupts = Interrupts(self)
        self.dma_logging = DMALogging(self)
        self.low_power = LowPower(self)
        self.migration = Migration(self)
        super().__init__(iommufd, host)

    @classmethod
    def from_fd(cls, fd: int, iommufd: IOMMUFD, *, id: int | None = None) -> Self:  # noqa: A002 - as the attribute
        """Take over the fd of a device that another process has bound, and passed on.

        The fd is this object's from then on, and is closed with it; the device stays bound until every process that has
        it has closed it. Where this fails the fd stays the caller's. Registers, interrupts, resets and features work as
        they do where it was bound. What the other process has attached or enabled cannot be asked: previews and
        `DMAChange` say ``unknown``, `page_table` is what this object has attached, and an attach where the other
        process has attached is a replace to the kernel. Its close detaches nothing while others have the device: they
        may have attached it elsewhere since. `detach` it before where what this object has attached it to is to go.

        Args:
            fd: The file descriptor, as it came over a socket or through an exec.
            iommufd: What it is bound to, by `IOMMUFD.from_fd` of the other process's fd. It closes the device with it.
            id: The other process's `Device.id`. The kernel tells the ids of PCI devices that a hot reset could reset;
                of others it is not known without this, and what goes by it is an UnsupportedError: `hw_info`,
                `alloc_hwpt`.

        Raises:
            ValueError, TypeError: It is not the fd of a bound vfio cdev, or that of a living object of this process:
                give a copy, ``os.dup(fd)``; it is seen to be bound to another iommufd, or has another id, or that is
                something else's; or that is no IOMMUFD.
            IoctlError: It is not open.
            ClosedError, ForkedError: The iommufd is closed, or belongs to the parent process.
        """
        if not isinstance(getattr(iommufd, "_context", None), Context):
            raise TypeError(f"a device is bound to an IOMMUFD, not to {type(iommufd).__name__}")
        given = None if id is None else operator.index(id)
        fd, host = device_of_fd(fd)
        with iommufd._lock:
            iommufd._live()
            told = _id_told_by_kernel(fd, host)
            if given is not None and (given <= 0 or told not in (None, given)):
                raise ValueError(f"{given} is not the id of {host.name}" + (f": that is {told}" if told else ""))
            self = cls(iommufd, host)
            self._mark_fd_shared()
            self.bind_change = self._change(ChangeKind.FIRST)  # another's, and so unknown
            number = told or given
            self._check_id_is_free(number)
            if number:
                self._c.id, self._c.state = number, ioctls.LIVE
            if told:
                self._check_iommufd()
            try:
                iommufd._remember(self)
                self._file.fd = fd
            finally:
                if self.closed:
                    iommufd._forget(self)
            return self

    def _check_id_is_free(self, number: int | None) -> None:
        """Refuse an id that something else of the iommufd has, or another than this process knows the device by."""
        context = self._iommufd._context
        others: list[Device | KernelObject] = [*context.devices(), *context.objects()]
        for other in others:
            same_device = isinstance(other, Device) and other.host == self.host
            if number and other.id and (other.id == number) != same_device:
                whose = f"that is {other.id}" if same_device else f"{other!r} has it"
                raise ValueError(f"{number} is not the id of {self.name} in {self._iommufd!r}: {whose}")

    def _check_iommufd(self) -> None:
        """Refuse an iommufd that has no device of this id."""
        try:
            ioctls.get_hw_info(self._c, None)
        except IoctlError as error:
            if error.errno == errno.ENOENT:
                raise ValueError(f"{self.name} is bound to another iommufd than {self._iommufd!r}") from None

    def info(self) -> DeviceInfo:
        """What the device says of itself (VFIO_DEVICE_GET_INFO), as it is now.

        Raises:
            IoctlError: The kernel refused.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        from pyiommufd.kernel.device.device_info import read_device_info

        return read_device_info(self._live())

    def _is_pci(self) -> bool:
        """Whether the kernel has it as a PCI device; as for `info`."""
        return bool(device_ioctls.device_info(self._live())[0] & uapi.VFIO_DEVICE_FLAGS_PCI)

    # Regions

    def region(self, index: int) -> Region:
        """A region by its number; a PCI device's by `RegionIndex` as well. One that is not there may have 0 bytes.

        Raises:
            IoctlError: EINVAL: the device has no region of that number; `causes` names those that it has.
            ValueError, TypeError: That is no number of a region.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        from pyiommufd.kernel.device.region import Region

        try:
            return Region(self, index)
        except IoctlError as error:
            if error.errno != errno.EINVAL:
                raise
        raise diagnose.no_region_error(self.name, index, list(self.regions))

    @property
    def regions(self) -> Mapping[int, Region]:
        """The regions that the device has, as they are now: without those of 0 bytes.

        By number; of a PCI device by `RegionIndex`, but for those that a device or its driver has beside them.

        Raises:
            IoctlError, ClosedError, ForkedError: As for `region`.
        """
        from pyiommufd.kernel.device.region import read_regions

        return read_regions(self)

    @property
    def config(self) -> ConfigSpace:
        """The PCI configuration space.

        Raises:
            UnsupportedError: It is not a PCI device.
            IoctlError, ClosedError, ForkedError: As for `region`.
        """
        if not self._is_pci():
            raise UnsupportedError(
                "VFIO_DEVICE_GET_REGION_INFO", errno.EOPNOTSUPP, f"{self.name}, which is not a PCI device"
            )
        return ConfigSpace(self, uapi.VFIO_PCI_CONFIG_REGION_INDEX)

    @property
    def bus_master(self) -> bool:
        """Whether the device may start DMA (the PCI command register's Bus Master Enable).

        Every bind clears it. While it is off nothing does DMA, whatever is attached. Of a CDX device it can be set
        (VFIO_DEVICE_FEATURE_BUS_MASTER), but not read.

        Raises:
            UnsupportedError: It is not a PCI device; set: nor a CDX device.
            TypeError: Set to neither True nor False.
            IoctlError, ClosedError, ForkedError: As for `region`.
        """
        return bool(self.config.command & Command.MASTER)

    @bus_master.setter
    def bus_master(self, on: bool) -> None:
        check_bool(on, "bus_master")
        if self._is_pci():
            self.config.set_command(Command.MASTER, on)
            return
        op = uapi.VFIO_DEVICE_FEATURE_SET_MASTER if on else uapi.VFIO_DEVICE_FEATURE_CLEAR_MASTER
        self.feature(DeviceFeature.BUS_MASTER).set(op.to_bytes(4, sys.byteorder))

    @property
    def memory_decode(self) -> bool:
        """Whether the device answers to accesses to its memory BARs (the command register's Memory Space Enable).

        The bind turns it on. While it is off, an access to a window is a `RegionFaultError`.

        Raises:
            UnsupportedError, TypeError, IoctlError, ClosedError, ForkedError: As for `bus_master`.
        """
        return bool(self.config.command & Command.MEMORY)

    @memory_decode.setter
    def memory_decode(self, on: bool) -> None:
        self.config.set_command(Command.MEMORY, check_bool(on, "memory_decode"))

    # Features

    @property
    def graphics(self) -> Graphics:
        """Its display, where it has one whose planes its driver shows, as mediated GPUs do."""
        from pyiommufd.kernel.device.graphics import Graphics

        return Graphics(self)

    def feature(self, number: int) -> Feature:
        """A feature by its number, a `DeviceFeature` or one of a newer kernel, whether or not the device has it.

        Raises:
            ValueError, TypeError: That is no number of a feature.
        """
        return Feature(self, number)

    def zpci_error(self) -> bytes | None:
        """The oldest pending error event of a zPCI device (VFIO_DEVICE_FEATURE_ZPCI_ERROR), or None.

        Returns:
            The event (CCDF), of `ZPCIBase.ccdf_err_length` bytes. It is not pending any more.

        Raises:
            UnsupportedError: It is not a zPCI device, or the kernel has no such events.
            IoctlError: The kernel refused.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        from pyiommufd.kernel.device.device_info import ZPCIBase

        lengths = [one.ccdf_err_length for one in self.info().capabilities if isinstance(one, ZPCIBase)]
        try:
            return device_ioctls.zpci_error(self._live(), max(lengths, default=0))
        except IoctlError as error:
            if error.errno == errno.ENOMSG:
                return None
            raise self.feature(DeviceFeature.ZPCI_ERROR).refused(error, FeatureAccess.GET) from None

    def set_vf_token(self, token: uuid.UUID | str | bytes) -> None:
        """Set the VF token that users of its virtual functions have to give (VFIO_DEVICE_FEATURE_PCI_VF_TOKEN).

        What was set last counts, here or by a bind; it stays when the device is closed, and cannot be read. What is
        bound stays bound.

        Args:
            token: A UUID, its text or its 16 bytes.

        Raises:
            UnsupportedError: The device is no physical function (SR-IOV).
            ValueError, TypeError: That is no UUID.
            IoctlError, ClosedError, ForkedError: As for `Feature.set`.
        """
        raw = as_token(token).bytes
        try:
            self.feature(DeviceFeature.PCI_VF_TOKEN).set(raw)
        except UnsupportedError as error:
            physical = self._device.physical_function
            seen, fix = "it has no SR-IOV", "do without"
            if physical is not None:
                seen, fix = f"it is a virtual function of {physical}", f"set it by the device of {physical}"
            cause = Cause(f"{self.name} is no physical function", seen, fix)
            raise UnsupportedError(error.request, error.errno or 0, self.name, (cause,)) from None

    # Reset

    @property
    def reset_methods(self) -> tuple[str, ...]:
        """How the kernel resets this device alone, in the order in which it tries; none: it cannot (sysfs)."""
        return reset_methods(self._device)

    def reset(self, method: str | None = None) -> None:
        """Reset the device alone (VFIO_DEVICE_RESET).

        Windows stay; an access during the reset is a `RegionFaultError`. The kernel restores the configuration space.

        Args:
            method: This one of the kernel's methods, such as ``flr``, chosen in sysfs for the time being, which takes
                root; None: those of `reset_methods`.

        Raises:
            IoctlError: The kernel refused; `causes` says why.
            ValueError, TypeError: The device does not have that method, or it is no name.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        fd = self._live()
        if method is None:
            self._reset(fd)
            return
        if not isinstance(method, str):
            raise TypeError(f"a reset method is named by a str such as 'flr', not by {type(method).__name__}")
        before = self.reset_methods
        try:
            set_reset_methods(self._device, (method,))
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # the latter where it has none at all
                known = ", ".join(before) or "none"
                raise ValueError(f"{self.name} has no reset method {method!r}; its methods: {known}") from None
            raise ioctl_error("write", error.errno or 0, f"the reset methods of {self.name}") from None
        try:
            self._reset(fd)
        finally:
            set_reset_methods(self._device, before)

    def _reset(self, fd: Fd) -> None:
        try:
            device_ioctls.reset(fd)
        except IoctlError as error:
            try:
                from pyiommufd.kernel.device.hot_reset import read_hot_reset_info

                together = [one.name for one in read_hot_reset_info(fd).devices]
            except (OSError, ImportError):
                together = []
            raise diagnose.reset_error(error.errno or 0, self._device, together) from None
        self.migration._was_reset()

    def hot_reset_info(self) -> HotResetInfo:
        """What `hot_reset` would reset, and what of it stands in the way.

        Raises:
            IoctlError: ENODEV: neither its bus nor its slot can be reset.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        from pyiommufd.kernel.device.hot_reset import read_hot_reset_info

        fd = self._live()
        try:
            return read_hot_reset_info(fd)
        except IoctlError as error:
            raise diagnose.hot_reset_error(error.errno or 0, self._device, (), error.request) from None

    def hot_reset(self) -> HotResetInfo:
        """Reset everything on the device's bus or slot (VFIO_DEVICE_PCI_HOT_RESET).

        Each device there has to be bound to the same iommufd, or to be on a vfio driver in a group that has one bound
        to it: such a device *is reset* without having been named.

        Returns:
            What has been reset.

        Raises:
            IoctlError: The kernel refused; `causes` names the devices that are not owned.
            ClosedError, ForkedError: The device is closed, or belongs to the parent process.
        """
        info = self.hot_reset_info()
        try:
            device_ioctls.hot_reset(self._live())
        except IoctlError as error:
            not_owned = [device.name for device in info.not_owned]
            raise diagnose.hot_reset_error(error.errno or 0, self._device, not_owned, error.request) from None
        return info

    # Removal

    def watch_removal(self, callback: Callable[[Device], object] | None = None) -> RemovalWatch:
        """Close the device when the host requests its removal, for a driver unbind or a hot-unplug.

        Until every user has closed the device, the requesting process blocks uninterruptibly in the kernel.

        Args:
            callback: Called with the device, in another thread, to stop what uses it. When it returns, or raises, the
                device is closed. Where there are several watches, the latest is told first.

        Returns:
            The watch, whose ``close()`` ends it. It ends with the device, too.

        Raises:
            InUseError: `Interrupts.req` is on, for a use of your own.
            UnsupportedError: The device cannot be asked for back.
            TypeError: The callback cannot be called.
            IoctlError, ClosedError, ForkedError: As for `IRQ.enable`.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"{callback!r} cannot be called")
        from pyiommufd.kernel.device.removal import RemovalWaiter

        with self.interrupts._lock:
            self._live()
            if self._removal is None or self._removal.is_idle:
                self._removal = RemovalWaiter(self)
            return self._removal.add(callback)

    # Close

    def _open(self, child: DMABuf | PlaneBuffer, call: Callable[..., None], *arguments: object) -> None:
        """Have the kernel make the file of a child: ``call`` with the device's file, the arguments, and the child's."""
        try:
            # On record before it exists: whatever is raised in between, closing the device closes it. The lock keeps
            # another thread from closing the device meanwhile.
            with self._iommufd._lock:
                fd = self._live()
                self._children[child] = None
                call(fd, *arguments, child._file)
        except BaseException as error:
            child.close()
            if isinstance(error, IoctlError):
                self._live()  # raises where a signal handler has closed the device
            raise

    def _living(self) -> list[Window | DMABuf | PlaneBuffer]:
        # keyrefs() is a copy made by one operation: other threads and signal handlers may add and drop children.
        return [child for reference in self._children.keyrefs() if (child := reference()) is not None]

    def _close_children(self) -> list[BaseException]:
        """Close windows, dma-bufs, eventfds and migration data; returns the errors."""
        errors: list[BaseException] = []
        own = (self.interrupts._close, self.migration._close)
        for close in (*[child.close for child in self._living()], *own):
            try:
                close()
            except OSError as error:
                errors.append(error)
        return errors

    def _close_virtual(self) -> list[BaseException]:
        """Close what a VM knows it by, which would go with the bind, and its id be lost; returns the errors."""
        errors: list[BaseException] = []
        for made in self._iommufd._context.objects():
            if made._goes_with(self):
                try:
                    made.close()
                except OSError as error:
                    errors.append(error)
        return errors

    def close(self) -> None:
        """Unbind: close the windows, dma-bufs, eventfds and the cdev, which detaches. Does nothing the second time.

        The `VDevice` that it has in a vIOMMU is closed, too. A dma-buf does not keep the device bound: what is mapped
        of those that it has exported is revoked (`DMAMapping.revoked`).

        When the last bound device of the group is closed, the kernel's DMA API owns the group again and host
        drivers can take its members. In a forked child only the child's copies of the fds are closed.

        Raises:
            CloseError: Something could not be released; the rest has been.
        """
        if self.in_child:
            self._close_children()
            self._close_fd()
            return
        errors: list[BaseException] = []
        with self._iommufd._lock:  # a second caller waits until it is unbound
            if self.closed:
                errors += self._close_children()  # what a signal handler made, or its exception left open
            else:
                self._unbind(errors)
        if errors:
            raise CloseError(f"{self.name} was closed with errors:", tuple(errors))

    def _unbind(self, errors: list[BaseException]) -> None:
        """Close it, adding to the errors. The iommufd's lock is held."""
        try:
            errors += self._close_children()
            errors += self._close_virtual()
            ioctls.abandon(self._c)
            if self._left_to_a_child:
                self._mark_fd_shared()  # the kernel unbinds it when that child has closed it, too
            self._close_fd()
        except OSError as error:
            errors.append(error)
        finally:
            if self._file.fd < 0:  # not where a signal handler raised before
                errors += self._close_children()  # what one has made meanwhile
                self._iommufd._forget(self)

    def _mark_forked(self) -> None:
        super()._mark_forked()
        for child in self._living():
            child._mark_forked()  # what a window maps, or a dma-buf is of, is the parent's, too

    def __del__(self) -> None:
        # Nobody could close the windows any more, and one that is left keeps the device bound.
        try:
            if hasattr(self, "interrupts") and not self.closed and not self.in_child:
                self._close_children()
        finally:
            super().__del__()

    def __repr__(self) -> str:
        return f"<Device {self.id} {self._device.name}{' closed' if self.closed else ''}>"


def _id_told_by_kernel(fd: int, host: HostDevice) -> int | None:
    """The id of a device that another process has bound, which only the information about a hot reset has.

    Raises:
        ValueError: It is not bound.
        IoctlError: The kernel refused for another reason.
    """
    from pyiommufd.kernel.device.hot_reset import read_hot_reset_info

    try:
        device_ioctls.device_info(fd)
    except IoctlError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError(f"fd {fd} of {host.name} is not bound: DeviceFile.from_fd takes it over") from None
    try:
        info = read_hot_reset_info(fd)
    except IoctlError:
        return None
    return next((one.id for one in info.devices if one.name == host.name), None)
