"""The machines that the blocks of pages are run on, by the names that the pages use, besides this one.

guest     the default guest
host      a guest that plays a host with two network cards, of which the second is for a virtual machine
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from pyiommufd.testing import E1000e, Guest, RootPort
from pyiommufd.testing.provision.kernels import cache_folder
from pyiommufd.testing.provision.newer_qemu import fetched_qemus

_ADDRESS = """
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
"""


@contextlib.contextmanager
def _guest() -> Iterator[tuple[Guest, dict[str, str]]]:
    with Guest() as guest:
        # For an example that runs as nobody: this Python may be below root's own folder.
        guest.run(["chmod", "711", "/root"], check=True)
        yield guest, {}


@contextlib.contextmanager
def _host() -> Iterator[tuple[Guest, dict[str, str]]]:
    newer = fetched_qemus(cache_folder())[0]  # distributions' own do not all take fds of devices
    cards = [RootPort(E1000e(network=True)), RootPort(E1000e(network=True))]
    with Guest(devices=cards, read_only=[newer.folder]) as guest:
        guest.run(["sh", "-ec", _ADDRESS], check=True)
        yield guest, {"PATH": f"{newer.program.parent}:{os.environ['PATH']}"}


MACHINES: dict[str, Callable[[], contextlib.AbstractContextManager[tuple[Guest, dict[str, str]]]]] = {
    "guest": _guest,
    "host": _host,
}
"""Each as a context manager: the guest, and what the environment in it has besides."""
