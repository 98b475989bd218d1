"""The other process of `test_shared`: it gets an iommufd over a socket and does with a device what it is told.

python other_process.py FD-OF-THE-SOCKET DEVICE
"""

from __future__ import annotations

import json
import socket
import sys

from pyiommufd import IOMMUFD, DMAChange


def main() -> None:
    """Answer each line with what the library reported."""
    with socket.socket(fileno=int(sys.argv[1])) as peer:
        _, (fd,), _, _ = socket.recv_fds(peer, 1, 1)
        with IOMMUFD.from_fd(fd) as iommufd:
            device = iommufd.bind(sys.argv[2])
            for line in peer.makefile():
                answer: DMAChange | None = None
                match line.strip():
                    case "bind_change":
                        answer = device.bind_change
                    case "attach" | "replace" as action:
                        page_table = iommufd.vfio_ioas
                        assert page_table is not None
                        answer = getattr(device, action)(page_table)
                    case "detach":
                        answer = device.detach()
                told = answer and [answer.kind, answer.verdict, [one.name for one in answer.devices]]
                peer.sendall(json.dumps(told).encode() + b"\n")


if __name__ == "__main__":
    main()
