"""What the plugin on the host and pytest in the guest say to each other, over a virtio port of their own.

A frame is a big-endian 32-bit length and one JSON object, which has an ``op``. JSON, because pytest has imported it
anyway, and the guest has little to spare. A frame that the guest has written has left the guest: nothing is lost
when its kernel panics right after.

The host says ``job`` (which tests), then ``go`` or ``stop`` to each failed report, and ``stop`` whenever it likes.
Where the job is to be run one by one, it says ``run`` for each test, with the one that comes next, and ``end``.
The guest says ``ready``, ``collected``, for each test ``start``, ``report``… and ``finish``, as they come ``warning``,
``exit`` and ``stopped``, and at last ``coverage`` where it is measured.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PORT = "pyiommufd.pytest"
"""The name of the virtio port."""

LARGEST = 1 << 28


def encode(message: dict[str, Any]) -> bytes:
    """A frame of the message; what JSON does not know becomes its ``repr``."""
    body = json.dumps(message, default=repr).encode()
    return len(body).to_bytes(4, "big") + body


def decode(buffer: bytearray) -> dict[str, Any] | None:
    """Take the first message off the buffer, or None where it is not complete yet.

    `agent.decode` does the same for its own encoding. To load that long module would delay each pytest in a guest.

    Raises:
        ValueError: The buffer does not hold a frame.
    """
    if len(buffer) < 4:
        return None
    end = 4 + int.from_bytes(buffer[:4], "big")
    if end > LARGEST:
        raise ValueError(f"a frame of {end} bytes")
    if len(buffer) < end:
        return None
    body = bytes(buffer[4:end])
    del buffer[:end]
    message = json.loads(body)
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise ValueError("a frame that holds no message")
    return message


def open_port(name: str) -> int:
    """Open a virtio port of this guest by its name; the fd is not inherited.

    Raises:
        FileNotFoundError: This guest has no port of that name.
    """
    ports = "/sys/class/virtio-ports"
    for port in os.listdir(ports) if os.path.isdir(ports) else ():  # noqa: PTH112,PTH208 - runs where time is dear
        with open(f"{ports}/{port}/name") as file:
            if file.read().strip() == name:
                return os.open(f"/dev/{port}", os.O_RDWR | os.O_CLOEXEC)
    raise FileNotFoundError(f"this guest has no virtio port {name}")
