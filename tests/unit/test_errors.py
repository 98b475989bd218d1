"""The exceptions: errno kept, causes shown, pickled and back."""

from __future__ import annotations

import builtins
import copy
import errno
import pickle
from pathlib import Path

import pytest

from pyiommufd import errors
from pyiommufd.errors import (
    AccessDeniedError,
    AlreadyMappedError,
    BusyError,
    Cause,
    ClaimRefusedError,
    ClosedError,
    CloseError,
    DeviceNotFoundError,
    ForkedError,
    GroupConflictError,
    GroupNotViableError,
    InUseError,
    IoctlError,
    IOMMUFDError,
    NotFoundError,
    Refusal,
    RegionFaultError,
    UnsupportedError,
    ioctl_error,
)
from pyiommufd.host.discovery.devices import HostDevice

CAUSE = Cause("it is broken", "seen here", "mend it")


def device(name: str = "0000:02:03.0") -> HostDevice:
    return HostDevice(name, "pci", Path("/sys/devices/x"), 1, 2, 3, "virtio-pci", 5, None, None, None, False)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOTTY, UnsupportedError),
        (errno.EOPNOTSUPP, UnsupportedError),
        (errno.EBUSY, BusyError),
        (errno.ENOENT, NotFoundError),
        (errno.EEXIST, AlreadyMappedError),
        (errno.EPERM, AccessDeniedError),
        (errno.EACCES, AccessDeniedError),
        (errno.EINVAL, IoctlError),
        (errno.ENOMEM, IoctlError),
        (4095, IoctlError),
    ],
)
def test_errno_is_kept(code: int, kind: type[IoctlError]) -> None:
    error = ioctl_error("IOMMU_IOAS_MAP", code, "here", (CAUSE,))
    assert type(error) is kind
    assert isinstance(error, OSError)
    assert isinstance(error, IOMMUFDError)
    assert (error.errno, error.request, error.target, error.causes) == (code, "IOMMU_IOAS_MAP", "here", (CAUSE,))
    assert "IOMMU_IOAS_MAP on here" in str(error)
    assert errno.errorcode.get(code, str(code)) in str(error)


def test_text_carries_every_cause() -> None:
    error = ioctl_error("BIND", errno.EPERM, "x", (CAUSE, Cause("or this")))
    first, second, third = str(error).splitlines()
    assert first == "BIND on x: EPERM (Operation not permitted)"
    assert second.strip() == "it is broken (seen here); mend it"
    assert third.strip() == "or this"


def test_text_needs_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time it is printed the machine may be another."""
    every = [
        GroupNotViableError("BIND", errno.EPERM, "x", (CAUSE,), blockers=(device(),)),
        GroupConflictError("ATTACH", errno.EINVAL, "x", (CAUSE,), peers=(device(),)),
        ClaimRefusedError((Refusal("x", "swap", "it holds swap"),)),
        CloseError("closing", (OSError(5, "x"),)),
        InUseError("in use", (device(),)),
    ]

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(arguments)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", refuse)
        patched.setattr("os.open", refuse)
        patched.setattr("os.readlink", refuse)
        texts = [str(error) + repr(error) for error in every]
    assert all(texts)


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301
@pytest.mark.parametrize(
    "error",
    [
        ioctl_error("IOMMU_IOAS_MAP", errno.EEXIST, "here", (CAUSE,)),
        ioctl_error("x", errno.EINVAL),
        GroupNotViableError("BIND", errno.EPERM, "x", (CAUSE,), blockers=(device(),)),
        GroupConflictError("ATTACH", errno.EINVAL, "x", (), peers=(device(), device("0000:02:02.0"))),
        ClaimRefusedError((Refusal("x", "swap", "it holds swap"),)),
        CloseError("closing", (ValueError("x"),)),
        InUseError("in use", (device(),)),
        RegionFaultError(errno.EIO, "no answer"),
        DeviceNotFoundError("gone"),
        ForkedError("child"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_pickled_and_copied(error: Exception, clone: object) -> None:
    assert callable(clone)
    error.add_note("and this")
    again = clone(error)
    assert again.__notes__ == error.__notes__
    assert type(again) is type(error)
    assert str(again) == str(error)
    for name in ("errno", "request", "target", "causes", "blockers", "peers", "refusals", "users"):
        if hasattr(error, name):
            assert getattr(again, name) == getattr(error, name)


def test_group_errors_name_devices() -> None:
    refused = GroupNotViableError("BIND", errno.EPERM, blockers=(device(),))
    assert [blocker.name for blocker in refused.blockers] == ["0000:02:03.0"]
    assert GroupNotViableError("BIND", errno.EPERM).blockers == ()
    assert GroupConflictError("ATTACH", errno.EINVAL).peers == ()


def test_what_each_is() -> None:
    assert issubclass(ClosedError, ValueError)
    assert issubclass(ForkedError, ClosedError)
    assert issubclass(DeviceNotFoundError, LookupError)
    assert issubclass(RegionFaultError, OSError)
    own = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(own) > 15
    assert all(issubclass(kind, IOMMUFDError) for kind in own)


def test_errors_of_close_are_listed() -> None:
    error = CloseError("closing:", (OSError(errno.EIO, "one"), ValueError("two")))
    assert str(error) == "closing:\n  OSError: [Errno 5] one\n  ValueError: two"
