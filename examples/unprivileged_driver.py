"""A user-space driver without privileges: root opens a device, nobody drives it, by two fds over a socket.

    python examples/unprivileged_driver.py [DEVICE]

The device is one of QEMU's edu devices; without its name, the first that is found. It takes root; in a guest:

    pyiommufd guest -- python examples/unprivileged_driver.py
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys

from pyiommufd import DMABuffer, IOMMUFDError, find_device, plan_claim
from pyiommufd.testing.checks.claims import devices_by_id
from pyiommufd.testing.edu import DEVICE_ID, VENDOR_ID, EduDriver
from pyiommufd.vmm import Handover

MEMLOCK = 8 << 20
TEXT = b"moved by DMA"


def drive(channel: socket.socket) -> None:
    """What runs without privileges: it has a socket, and opens nothing."""
    print(f"user {os.getuid()} waits for a device", flush=True)
    with Handover.receive(channel) as handover:
        device = handover.iommufd.bind(handover.devices[0])
        ioas = handover.iommufd.alloc_ioas()
        device.attach(ioas)
        device.bus_master = True
        memory = DMABuffer(8192)
        memory[: len(TEXT)] = TEXT
        with ioas.map(memory, iova=0x100000) as mapping, EduDriver(device) as edu:
            edu.copy_in(mapping.iova, len(TEXT))
            edu.copy_out(mapping.iova + 4096, len(TEXT))
        print(f"{device.name}: {memory[4096 : 4096 + len(TEXT)].decode()}", flush=True)
        # The limit on locked memory is this process' own, and says what it takes.
        try:
            ioas.map(DMABuffer(2 * MEMLOCK), iova=0x1000000)
        except IOMMUFDError as error:
            print(error, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", metavar="DEVICE", nargs="?", help="an edu device, such as 00:01.0")
    parser.add_argument("--channel", type=int, help=argparse.SUPPRESS)  # how it starts itself as nobody
    given = parser.parse_args()
    try:
        if given.channel is not None:
            with socket.socket(fileno=given.channel) as channel:
                drive(channel)
            return 0
        found = [find_device(given.device)] if given.device else devices_by_id(VENDOR_ID, DEVICE_ID)
        if not found:
            sys.exit("there is no edu device here; pyiommufd guest has some")
        if (found[0].vendor_id, found[0].device_id) != (VENDOR_ID, DEVICE_ID):
            sys.exit(f"{found[0].name} is not an edu device")
        with plan_claim(found[0]).apply() as claim:
            ours, theirs = socket.socketpair()
            # setpriv, prlimit: what systemd's User= and LimitMEMLOCK= do for a service.
            prepare = ["prlimit", f"--memlock={MEMLOCK}", "setpriv", "--reuid=nobody", "--regid=nogroup"]
            prepare += ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
            program = [sys.executable, __file__, "--channel", str(theirs.fileno())]
            with subprocess.Popen([*prepare, *program], pass_fds=[theirs.fileno()]) as process, ours:
                theirs.close()
                Handover.open(claim.devices).send(ours)
            return process.returncode
    except (IOMMUFDError, OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    sys.exit(main())
