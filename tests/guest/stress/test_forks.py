"""Forked children that close, exit, crash, or live on."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    Claim,
    Device,
    DMABuffer,
    DMAMapping,
    HostDevice,
)
from pyiommufd.testing.drivers.edu import EduDriver
from tests.guest.dma import IOVA, Arrives


def crash() -> None:
    faulthandler.disable()  # pytest's, whose report of eight children is of no use
    os.abort()


def leave() -> None:
    os._exit(3)


def end_by_signal() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("end", ["close", "exit", "abort", "kill"])
def test_children_do_not_disturb_the_parents_dma(
    iommufd: IOMMUFD,
    device: Device,
    edu: EduDriver,
    ioas: IOAS,
    buffer: DMABuffer,
    mapping: DMAMapping,
    arrives: Arrives,
    end: str,
) -> None:
    device.attach(ioas)
    assert arrives(edu, buffer)
    children = []
    for _ in range(8):
        child = os.fork()
        if not child:
            try:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                if end == "close":
                    mapping_closed = False
                    try:
                        mapping.unmap()
                    except Exception:
                        mapping_closed = True
                    for one in (edu, ioas, device, iommufd):
                        one.close()
                    os._exit(0 if mapping_closed else 1)
                elif end == "abort":
                    crash()
                elif end == "kill":
                    end_by_signal()
                leave()
            finally:
                os._exit(99)
        children.append(child)
    assert arrives(edu, buffer)
    codes = {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
    assert codes == {{"close": 0, "exit": 3, "abort": -signal.SIGABRT, "kill": -signal.SIGKILL}[end]}
    assert arrives(edu, buffer)
    assert device.page_table is ioas
    assert ioas.unmap_all() == mapping.length
    assert not arrives(edu, buffer)
    ioas.map(buffer, iova=IOVA)
    assert arrives(edu, buffer)


def test_child_that_lives_on_does_not_keep_the_device_when_it_has_closed(
    claimed: Claim, first: HostDevice, peer: HostDevice
) -> None:
    with IOMMUFD() as iommufd:
        iommufd.bind(first)
        iommufd.bind(peer)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                iommufd.close()
                os.write(writer, b"x")
                signal.pause()
            finally:
                os._exit(1)
        try:
            assert os.read(reader, 1) == b"x"
            iommufd.close()
            with IOMMUFD() as other:
                other.bind(first).close()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)
            os.close(writer)
