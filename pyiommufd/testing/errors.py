"""What goes wrong around a guest: no kernel, no QEMU, a build that fails, a guest that dies."""

from __future__ import annotations

from pyiommufd.errors import IOMMUFDError


class GuestError(IOMMUFDError):
    """A guest could not be started, or ended by itself.

    Attributes:
        console: The last lines of the guest's serial console; empty where it never printed any.
    """

    def __init__(self, message: str, *, console: str = "") -> None:
        super().__init__(message)
        self.console = console


class GuestTimeoutError(GuestError, TimeoutError):
    """The guest, or a command in it, did not finish within its time limit."""


class GuestMissingError(GuestError):
    """This machine lacks something that a guest needs: QEMU, a kernel, busybox, build tools."""


class KernelBuildError(GuestError):
    """A guest kernel could not be fetched or built.

    Attributes:
        log: The path of the build log, or None where there is none yet.
    """

    def __init__(self, message: str, *, log: str | None = None) -> None:
        super().__init__(message)
        self.log = log
