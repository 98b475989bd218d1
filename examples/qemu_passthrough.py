"""Passthrough to QEMU: takes a device from the host, starts a VM that has it, and gives it back when the VM ends.

    python examples/qemu_passthrough.py 0000:01:00.0 qemu-system-x86_64 -accel kvm -m 2G -drive file=disk.qcow2

QEMU 9 or newer. ``pyiommufd run DEVICE -- QEMU ARGS`` does the same, passes signals on, and prints what it does.
"""

import argparse
import sys

from pyiommufd import IOMMUFDError, plan_claim
from pyiommufd.vmm import VMM, Handover, command_line

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("device", metavar="DEVICE", help="such as 0000:01:00.0, or eth1")
parser.add_argument("program", metavar="QEMU", help="such as qemu-system-x86_64")
arguments = parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="its own; may be none")
arguments.required = False  # before Python 3.13 argparse takes them for required
given = parser.parse_args()

try:
    with plan_claim(given.device).apply() as claim:  # the device with its whole IOMMU group
        with Handover.open(claim.devices) as handover:  # an iommufd and the device, open and not bound
            command = command_line([given.program, *given.arguments], handover.fds)
            vmm = VMM(command, handover)  # has the fds, which are closed here
        with vmm:  # ended with this block, and killed with this process
            status = vmm.wait()
except (IOMMUFDError, OSError, ValueError) as error:
    sys.exit(str(error))
sys.exit(status)
