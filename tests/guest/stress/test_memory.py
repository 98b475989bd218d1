"""Memory that is limited, or taken away under a mapping."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import subprocess
import sys

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    Claim,
    Device,
    DeviceFile,
    DMABuffer,
    HostDevice,
    IoctlError,
    Verdict,
)
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA, Arrives

PAGE = mmap.PAGESIZE

LIMITED = """
import errno, os, resource, sys
from pyiommufd.diagnose import *
from pyiommufd import DMABuffer, DeviceFile, IoctlError, IOMMUFD
iommufd, node, limit = IOMMUFD.from_fd(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
# Here rather than by whoever starts it: the interpreter itself may be in a folder of root's.
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
device = iommufd.bind(DeviceFile.from_fd(node))
ioas = iommufd.alloc_ioas()
device.attach(ioas)
fits, rest = DMABuffer(limit // 2), DMABuffer(limit)
with ioas.map(fits, iova=0x100000):
    for what in ("iova", "many"):
        try:
            if what == "iova":
                ioas.map(rest, iova=0x1000000)
            else:
                ioas.map_many(rest, [(0, limit // 2, 0x1000000), (limit // 2, limit // 2, 0x2000000)])
        except IoctlError as error:
            print(what, errno.errorcode[error.errno], error)
        else:
            print("mapped more than the limit")
    print("left", len(ioas.mappings))
# What was given back counts no more.
ioas.map(fits, iova=0x1000000).unmap()
rest.close()
print("unmapped", ioas.unmap_all())
device.detach()
# Before a device is attached nothing is pinned, and nothing counts: the attach is what fails.
late = iommufd.alloc_ioas()
large = DMABuffer(2 * limit)
late.map(large, iova=0x1000000)
try:
    device.attach(late)
except IoctlError as error:
    print("attach", errno.errorcode[error.errno], error)
print("attached to", device.page_table)
iommufd.close()
"""


@pytest.mark.long
def test_limit_on_locked_memory_for_a_user_without_privileges(claimed: Claim, first: HostDevice) -> None:
    """Another user, who was handed the two fds, may pin as much as RLIMIT_MEMLOCK says, and is told so."""
    limit = 1 << 20
    with IOMMUFD() as iommufd, DeviceFile(first) as file:
        fds = (iommufd.fileno(), file.fileno())
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, *map(str, fds), str(limit)],
            pass_fds=fds,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert out.count("ENOMEM") >= 3, out
    for what in ("iova", "many", "attach"):
        assert f"{what} ENOMEM" in out
    assert f"locked memory is limited to {limit:#x} bytes" in out
    assert "ulimit -l" in out
    assert "mapped more" not in out
    assert "left 1\n" in out
    assert "unmapped 0\n" in out
    assert "attached to None\n" in out
    # The error of the attach names what did not fit.
    assert "0x1000000..0x11fffff" in out


def test_root_pins_what_it_likes(device: Device, ioas: IOAS) -> None:
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (PAGE, before[1]))
    try:
        device.attach(ioas)
        with ioas.map(DMABuffer(64 * PAGE)):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


def test_truncated_memfd_is_named_by_the_attach(device: Device, edu: EduDriver, ioas: IOAS, arrives: Arrives) -> None:
    good = DMABuffer(PAGE)
    ioas.map(good, iova=IOVA)
    short = DMABuffer(4 * PAGE, memfd=True)
    mapping = ioas.map(short, iova=4 * IOVA)
    os.ftruncate(short.fileno(), 0)
    preview = device.preview_attach(ioas)
    assert preview.verdict is Verdict.REFUSED
    with pytest.raises(IoctlError) as caught:
        device.attach(ioas)
    assert caught.value.errno == errno.EFAULT
    for text in (str(caught.value), " ".join(preview.reasons)):
        assert f"{4 * IOVA:#x}..{4 * IOVA + 4 * PAGE - 1:#x}" in text
        assert f"{IOVA:#x}..{IOVA + PAGE - 1:#x}" not in text
    assert device.page_table is None
    assert not arrives(edu, good)
    mapping.unmap()
    device.attach(ioas)
    assert arrives(edu, good)


def test_memfd_truncated_while_a_device_reaches_it_leaves_the_device_on_the_old_pages(
    device: Device, edu: EduDriver, ioas: IOAS
) -> None:
    device.attach(ioas)
    buffer = DMABuffer(PAGE, memfd=True)
    ioas.map(buffer, iova=IOVA)
    buffer[:4] = b"kept"
    os.ftruncate(buffer.fileno(), 0)
    result = DMABuffer(PAGE)
    ioas.map(result, iova=2 * IOVA)
    edu.copy_in(IOVA, 4)
    edu.copy_out(2 * IOVA, 4)
    assert result[:4] == b"kept"
    assert ioas.unmap_all() == 2 * PAGE
    buffer.close()
