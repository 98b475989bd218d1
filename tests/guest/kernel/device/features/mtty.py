"""What tests do with an mtty, a serial port of the kernel's sample driver, whose state can be saved and loaded."""

from __future__ import annotations

import io
from typing import Any, TypeAlias

from pyiommufd import Device, MigrationState

S: TypeAlias = MigrationState
# Registers: the FIFO, which gives back what was written to it; what empties it; one without effect.
DATA, CONTROL, SCRATCH = 0, 2, 7
HEADER, SIZE = 24, 96  # bytes of an mtty's data: what comes first, and all
WITH_DATA = (S.PRE_COPY, S.PRE_COPY_P2P, S.STOP_COPY, S.RESUMING)


def fill(device: Device, text: bytes) -> None:
    """Have both ports hold it, and one more byte in a register."""
    for port in (0, 1):
        device.region(port).write(CONTROL, b"\x07")
        device.region(port).write(SCRATCH, text[:1])
        for byte in text:
            device.region(port).write(DATA, bytes([byte]))


def held(device: Device, length: int) -> list[bytes]:
    """What each port has in its register and gives back from its FIFO."""
    found = []
    for port in (0, 1):
        region = device.region(port)
        found.append(region.read(SCRATCH, 1) + b"".join(region.read(DATA, 1) for _ in range(length)))
    return found


def saved(device: Device) -> bytes:
    """The device's data; it runs on."""
    file = io.BytesIO()
    device.migration.save(file)
    device.migration.set_state(S.RUNNING)
    return file.getvalue()


def bring(device: Device, state: S, data: bytes) -> None:
    """From wherever it is to a state; it can be left."""
    device.reset()
    device.migration.set_state(state)
    if state == S.RESUMING:
        device.migration.stream.write(data)


class Broken(io.BytesIO):
    """A file that fails when it is read or written."""

    def write(self, data: Any, /) -> int:
        raise OSError("the disk is full")

    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError("the connection is gone")
