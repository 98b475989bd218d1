"""Causes of a refused attach."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pyiommufd import GroupConflictError, HostDevice
from pyiommufd.diagnose.attach import attach_error


def member(name: str) -> HostDevice:
    return HostDevice(name, "pci", Path("/sys/devices") / name, 1, 2, 3, "vfio-pci", None, None, None, None, True)


TARGET, PEER = member("0000:02:01.0"), member("0000:02:02.0")


def test_peers_are_named() -> None:
    error = attach_error(errno.EINVAL, TARGET, "<IOAS 4>", [(PEER, "<IOAS 2>")])
    assert isinstance(error, GroupConflictError)
    assert error.peers == (PEER,)
    assert error.errno == errno.EINVAL
    text = str(error)
    for part in ("0000:02:02.0", "<IOAS 2>", "<IOAS 4>", "detach or replace"):
        assert part in text


def test_peers_are_no_cause_of_other_errors() -> None:
    error = attach_error(errno.EADDRINUSE, TARGET, "<IOAS 4>", [(PEER, "<IOAS 2>")])
    assert not isinstance(error, GroupConflictError)
    assert "0000:02:02.0" not in str(error)


@pytest.mark.parametrize("code", [errno.EADDRINUSE, errno.ENOMEM, errno.EFAULT, errno.EINVAL])
def test_mappings_in_the_way_are_named(code: int) -> None:
    error = attach_error(code, TARGET, "<IOAS 4>", [], ["0x1000..0x1fff", "0x3000..0x3fff"])
    assert error.errno == code
    (cause,) = error.causes
    assert "0x1000..0x1fff; 0x3000..0x3fff" in cause.evidence
    assert cause.fix


def test_many_mappings_do_not_fill_the_screen() -> None:
    error = attach_error(errno.EFAULT, TARGET, "<IOAS 4>", [], [f"{at:#x}" for at in range(1000)])
    assert len(str(error)) < 1000
    assert "…" in str(error)


@pytest.mark.parametrize("code", [errno.EBUSY, errno.ENOENT, errno.EOPNOTSUPP])
def test_what_may_be_behind_it_where_nothing_is_known(code: int) -> None:
    error = attach_error(code, TARGET, "<IOAS 4>", [])
    assert error.errno == code
    assert error.causes
    assert all(cause.fix and not cause.evidence for cause in error.causes)


def test_errno_is_kept_without_a_cause() -> None:
    error = attach_error(errno.ENODEV, TARGET, "<IOAS 4>", [])
    assert (error.errno, error.causes) == (errno.ENODEV, ())
