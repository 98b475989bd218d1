"""The exceptions that pyiommufd raises, and the causes that a refusal by the kernel carries.

Wrong arguments are `TypeError` or `ValueError`, before any ioctl. Everything else derives from
`IOMMUFDError`; what the kernel refused is an `IoctlError`, which is an `OSError` and keeps its errno.

Texts name what others have chosen: paths, interfaces, commands. What is not printable in them is written as its number.
"""

from __future__ import annotations

import errno as errno_module
import os

from pyiommufd.light_typing import TYPE_CHECKING, final
from pyiommufd.printable import printable, shortened

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyiommufd.causes import NEVER_FORCED as NEVER_FORCED
    from pyiommufd.causes import Cause as Cause
    from pyiommufd.causes import DeviceLike as DeviceLike
    from pyiommufd.causes import Fix as Fix
    from pyiommufd.causes import Refusal as Refusal
    from pyiommufd.causes import override as override
    from pyiommufd.kernel.device.features.migration_states import MigrationState
else:
    _OF_CAUSES = frozenset({"NEVER_FORCED", "Cause", "DeviceLike", "Fix", "Refusal", "override"})

    def __getattr__(name):
        # Imported when there are causes: dataclasses are slow to import.
        if name not in _OF_CAUSES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from pyiommufd import causes

        return getattr(causes, name)


class IOMMUFDError(Exception):
    """The base class of all exceptions that pyiommufd raises, except for wrong arguments.

    Its text, and the notes that are added to it, are safe to print: what is not printable is written as its number.
    """

    @final
    def __str__(self) -> str:
        return printable(self._text(), keep="\n")

    def for_command(self) -> str:
        """The message as a command prints it, with its notes: what it says of a way out are commands, not Python."""
        return "\n".join([printable(self._text(command=True), keep="\n"), *getattr(self, "__notes__", ())])

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {shortened(str(self).partition(chr(10))[0])}>"

    def _text(self, *, command: bool = False) -> str:
        """The message; overridden by subclasses whose message has more than their arguments.

        Those may be an `IOMMUFDError`, which is why, a `Cause` and a `Fix`: each stands in the form that is called for.
        """
        if not any(isinstance(one, IOMMUFDError) or hasattr(one, "_part") for one in self.args):
            return super().__str__()
        text = ""
        for one in self.args:
            if hasattr(one, "_part"):
                text += one._part(command=command)
            elif isinstance(one, BaseException):
                text += f": {_said(one, command=command)}"
            else:
                text += str(one)
        return text

    def add_note(self, note: str) -> None:
        """Add a note, as of any exception."""
        super().add_note(printable(note, keep="\n"))


class ClosedError(IOMMUFDError, ValueError):
    """A closed object was used."""


class ForkedError(ClosedError):
    """An object was used in a forked child; it belongs to the process that made it."""


class InUseError(IOMMUFDError):
    """An object cannot be closed while others use it; or an interrupt is in use and cannot be turned on anew.

    Attributes:
        users: The objects that use it.
    """

    def __init__(self, message: str, users: tuple[object, ...] = ()) -> None:
        super().__init__(message, users)
        self.users = users

    def _text(self, *, command: bool = False) -> str:
        del command
        return str(self.args[0])


class MigrationPathError(IOMMUFDError):
    """A device has no way from its migration state to the one asked for; the kernel has not been asked.

    Attributes:
        state: The state that the device is in.
        wanted: The one asked for.
    """

    def __init__(self, message: str, state: MigrationState, wanted: MigrationState) -> None:
        super().__init__(message, state, wanted)
        self.state = state
        self.wanted = wanted

    def _text(self, *, command: bool = False) -> str:
        del command
        return str(self.args[0])


class AlreadyAttachedError(IOMMUFDError):
    """A device that is attached was to be attached again; `Device.replace` is the way."""


def _said(error: BaseException, *, command: bool) -> str:
    """The message of an error; prefixed with its type if it is not one of pyiommufd's."""
    if isinstance(error, IOMMUFDError):
        return error._text(command=command)
    return f"{type(error).__name__}: {error}"


class CloseError(IOMMUFDError):
    """Something failed while an owner closed what it owns; the rest was released all the same.

    Attributes:
        errors: Every failure, in the order in which they happened.
    """

    def __init__(self, message: str, errors: tuple[BaseException, ...] = ()) -> None:
        super().__init__(message, errors)
        self.errors = errors

    def _text(self, *, command: bool = False) -> str:
        return "\n  ".join([str(self.args[0]), *(_said(error, command=command) for error in self.errors)])


class DeviceNotFoundError(IOMMUFDError, LookupError):
    """No device has that name, or more than one has.

    Attributes:
        names: The devices that the name can mean, where these are several.
        is_unknown: Whether there is nothing of that name at all, nor at that path.
    """

    names: tuple[str, ...] = ()
    is_unknown = False


class MissingLibraryError(IOMMUFDError, ImportError):
    """This machine lacks a library that finds devices: libudev."""


class ClaimError(IOMMUFDError):
    """A claim, or its release, could not be carried out."""


class ClaimRefusedError(ClaimError):
    """A claim would take something from the host that the host is using.

    Attributes:
        refusals: Each device and what it is doing.
        what: What is refused.
    """

    def __init__(self, refusals: tuple[Refusal, ...], what: str = "the claim") -> None:
        super().__init__(refusals, what)
        self.refusals = refusals
        self.what = what

    def _text(self, *, command: bool = False) -> str:
        from pyiommufd.causes import override  # which is there: so are refusals

        way = override(self.refusals)
        lines = [one.for_command() if command else str(one) for one in self.refusals]
        return "\n  ".join([f"{self.what} is refused:", *lines, way.command if command else way.python])


class HandoverError(IOMMUFDError):
    """Devices could not be handed to another process, or taken over from one."""


class CommandLineError(HandoverError, ValueError):
    """The arguments of a program stand in the way of its getting devices."""


class RegionFaultError(IOMMUFDError, OSError):
    """A device did not answer a register access: its memory decode is off, it sleeps, or it is gone.

    The message says which, where that is seen without waking the device.

    Attributes:
        done: How many bytes had been moved before, where it was a copy of many.
    """

    done = 0


class IoctlError(IOMMUFDError, OSError):
    """The kernel refused a request.

    Attributes:
        request: The kernel's name of the ioctl, or of the system call where it was another.
        errno: Why, as in `errno`.
        target: What the request was about, such as the name of a device.
    """

    _causes: tuple[Cause, ...]
    _general = False  # without causes of its own it has those that the request and errno have anywhere

    def __init__(
        self, request: str, errno: int, target: str = "", causes: tuple[Cause, ...] = (), **details: Any
    ) -> None:
        super().__init__(errno, os.strerror(errno))
        self.request = request
        self.target = target
        self._causes = causes
        self._details = details

    @property
    def causes(self) -> tuple[Cause, ...]:
        """What may be behind it, the likeliest first: found when the error was raised, or what is so in general."""
        if not self._causes and self._general and _explain is not None:
            self._causes = _explain(self.request, self.errno or 0)
        return self._causes

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.request, self.errno), self.__dict__

    def _text(self, *, command: bool = False) -> str:
        name = errno_module.errorcode.get(self.errno or 0, str(self.errno))
        text = f"{self.request}{f' on {self.target}' if self.target else ''}: {name} ({self.strerror})"
        return "\n  ".join([text, *(cause.for_command() if command else str(cause) for cause in self.causes)])


class UnsupportedError(IoctlError):
    """This kernel, IOMMU or device does not have what was asked for (ENOTTY, EOPNOTSUPP)."""


class BusyError(IoctlError):
    """Something else uses the object (EBUSY)."""


class NotFoundError(IoctlError):
    """There is no such object, mapping or node (ENOENT)."""


class AlreadyMappedError(IoctlError):
    """The place is taken (EEXIST): the I/O virtual addresses hold a mapping already, or a vIOMMU has such an object."""


class AccessDeniedError(IoctlError):
    """The caller may not do this (EACCES, EPERM)."""


class VectorsUnavailableError(IoctlError):
    """Fewer interrupt vectors are available than were requested (ENOSPC); none has been enabled."""

    @property
    def available(self) -> int:
        """How many vectors are available."""
        return int(self._details.get("available", 0))


class GroupNotViableError(IoctlError):
    """A bind was refused because of another member of the device's IOMMU group."""

    @property
    def blockers(self) -> tuple[DeviceLike, ...]:
        """The members that are on a host driver."""
        return tuple(self._details.get("blockers", ()))


class MigrationError(IoctlError):
    """A device could not be moved to a migration state, or its data could not be read or written.

    Attributes:
        state: The state that it has been left in, after `Migration.save` or `Migration.load` has moved it back or reset
            it; None: not known.
    """

    state: MigrationState | None = None

    def _text(self, *, command: bool = False) -> str:
        text = super()._text(command=command)
        if self.state is not None:
            text += f"\n  it is {self.state.name} now"
            if self.state.name == "RESUMING":
                text += (
                    ": a reset leads out of that, to RUNNING" if command else ": reset() leads out of that, to RUNNING"
                )
        return text


class InvalidationError(IoctlError):
    """Not all cached translations were invalidated (IOMMU_HWPT_INVALIDATE)."""

    @property
    def done(self) -> int:
        """How many of the entries the kernel has done: the first ones. The next one is what it refused."""
        return int(self._details.get("done", 0))


class GroupConflictError(IoctlError):
    """An attach was refused because a member of the group is attached to another page table."""

    @property
    def peers(self) -> tuple[DeviceLike, ...]:
        """The members that are attached to another page table."""
        return tuple(self._details.get("peers", ()))


_BY_ERRNO: dict[int, type[IoctlError]] = {
    errno_module.ENOTTY: UnsupportedError,
    errno_module.EOPNOTSUPP: UnsupportedError,
    errno_module.EBUSY: BusyError,
    errno_module.ENOENT: NotFoundError,
    errno_module.EEXIST: AlreadyMappedError,
    errno_module.EACCES: AccessDeniedError,
    errno_module.EPERM: AccessDeniedError,
}


_explain: Callable[[str, int], tuple[Cause, ...]] | None = None


def explain_with(function: Callable[[str, int], tuple[Cause, ...]]) -> None:
    """Set the function that provides the causes for a request and errno when the caller gives none."""
    global _explain
    _explain = function


def ioctl_error(request: str, errno: int, target: str = "", causes: tuple[Cause, ...] = ()) -> IoctlError:
    """The exception for an errno, where no more special class fits."""
    error = _BY_ERRNO.get(errno, IoctlError)(request, errno, target, causes)
    error._general = True
    return error
