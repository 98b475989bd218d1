"""Causes of a refused map."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest

from pyiommufd import AlreadyMappedError, HostDevice
from pyiommufd.diagnose.hwpt import hwpt_alloc_error
from pyiommufd.diagnose.mapping import map_error
from pyiommufd.host import limits


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (errno.EEXIST, "0x5000..0x5fff"),
        (errno.EINVAL, "0x0..0xffff"),
        (errno.ENOSPC, "0x0..0xffff"),
        (errno.EOVERFLOW, "wraps"),
        (errno.EFAULT, "writeable=False"),
        (errno.ENOMEM, "ulimit -l"),
    ],
)
def test_each_cause_says_what_helps(code: int, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "has_capability", lambda number: False)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (0x3000, 0x3000))
    error = map_error(code, "IOMMU_IOAS_MAP", "<IOAS 1>", 0x1000, 0x5000, "0x0..0xffff", "0x5000..0x5fff")
    assert error.errno == code
    assert word in str(error)
    assert "<IOAS 1>" in str(error)
    assert "0x5000" in error.target
    assert error.causes[0].fix


def test_addresses_that_the_kernel_chooses_are_not_to_blame() -> None:
    (cause,) = map_error(errno.EINVAL, "IOMMU_IOAS_MAP", "<IOAS 1>", 0x1000, None, "0x0..0xffff").causes
    assert "iova_alignment" in cause.fix
    assert "0xffff" not in str(cause)


def test_a_page_table_that_is_refused_is_not_said_to_be_of_a_wrong_parent() -> None:
    device = HostDevice("0000:00:01.0", "pci", Path("/sys/devices/x"), 1, 2, 3, None, 5, None, None, None, True)
    (cause,) = hwpt_alloc_error(errno.EINVAL, device, "<IOAS 1>", [], []).causes
    assert "data" in cause.summary


def test_kind_of_error() -> None:
    assert isinstance(map_error(errno.EEXIST, "x", "y", 1, None, ""), AlreadyMappedError)
    assert "anywhere" in map_error(errno.EEXIST, "x", "y", 1, None, "").target


def test_limit_is_in_the_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "has_capability", lambda number: False)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (0x3000, 0x3000))
    (cause,) = map_error(errno.ENOMEM, "IOMMU_IOAS_MAP", "<IOAS 1>", 0x1000, None, "").causes
    assert "0x3000 bytes" in cause.evidence
    # It does not apply to those who may lock any amount.
    monkeypatch.setattr(limits, "has_capability", lambda number: True)
    (cause,) = map_error(errno.ENOMEM, "IOMMU_IOAS_MAP", "<IOAS 1>", 0x1000, None, "").causes
    assert "0x3000" not in str(cause)
    assert "too little" in cause.summary


def test_errno_without_a_cause() -> None:
    assert map_error(errno.ENXIO, "IOMMU_IOAS_MAP", "<IOAS 1>", 1, None, "").causes == ()
