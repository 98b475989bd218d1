"""What a program is not started with."""

from __future__ import annotations

import resource

import pytest

from pyiommufd import HandoverError
from pyiommufd.vmm import UNLIMITED
from pyiommufd.vmm.vmm import check_memlock, check_start


@pytest.mark.parametrize("memlock", [True, "8", 8.0, b"8"])
def test_limit_that_is_no_number(memlock: object) -> None:
    with pytest.raises(TypeError, match=f"not {type(memlock).__name__}"):
        check_memlock(memlock)


@pytest.mark.parametrize(("memlock", "message"), [(-2, "not -2"), (2**63, "at most 8796093022207 MiB")])
def test_limit_that_the_kernel_has_no_number_for(memlock: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_memlock(memlock)


def test_limits_that_may_be_set() -> None:
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    for memlock in (None, 0, UNLIMITED if hard == resource.RLIM_INFINITY else hard):
        check_memlock(memlock)


def test_more_devices_than_files_may_be_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        check_start(["true"], 10, user=None, memlock=None)
        with pytest.raises(HandoverError, match=r"253 devices take more than the 256 open files.*ulimit -n"):
            check_start(["true"], 253, user=None, memlock=None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
