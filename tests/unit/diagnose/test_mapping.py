"""Causes of a refused map."""

from __future__ import annotations

import errno
import resource

import pytest

from pyiommufd import AlreadyMappedError
from pyiommufd.diagnose.mapping import map_error


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
def test_each_cause_says_what_helps(code: int, word: str) -> None:
    error = map_error(code, "IOMMU_IOAS_MAP", "<IOAS 1>", 0x1000, 0x5000, "0x0..0xffff", "0x5000..0x5fff")
    assert error.errno == code
    assert word in str(error)
    assert "<IOAS 1>" in str(error)
    assert "0x5000" in error.target
    assert error.causes[0].fix


def test_kind_of_error() -> None:
    assert isinstance(map_error(errno.EEXIST, "x", "y", 1, None, ""), AlreadyMappedError)
    assert "anywhere" in map_error(errno.EEXIST, "x", "y", 1, None, "").target


def test_limit_is_in_the_evidence() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0x3000, hard))
    try:
        text = str(map_error(errno.ENOMEM, "IOMMU_IOAS_MAP", "<IOAS 1>", 0x1000, None, ""))
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    assert "0x3000 bytes" in text


def test_errno_without_a_cause() -> None:
    assert map_error(errno.EDEADLK, "IOMMU_IOAS_MAP", "<IOAS 1>", 1, None, "").causes == ()
