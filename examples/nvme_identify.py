"""Asks an NVMe controller for its model and serial number, by DMA from Python.

    python examples/nvme_identify.py 0000:01:00.0

The controller is taken from its host driver, with the devices of its IOMMU group, and given back. One that the host is
using (a mounted file system, swap …) is not taken. It takes root, an IOMMU, and a kernel with iommufd; in a guest:

    pyiommufd guest --device nvme,serial=1234 -- python examples/nvme_identify.py 1b36:0010
"""

from __future__ import annotations

import argparse
import sys

from pyiommufd import IOMMUFD, IOMMUFDError, plan_claim
from pyiommufd.testing.drivers.nvme import NvmeDriver


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", metavar="DEVICE", help="such as 0000:01:00.0, or nvme0")
    target = parser.parse_args().device
    try:
        with plan_claim(target).apply() as claim, IOMMUFD() as iommufd:
            device = iommufd.bind(claim.devices[0])
            ioas = iommufd.alloc_ioas()
            device.attach(ioas)
            device.bus_master = True
            with NvmeDriver(device, ioas, use_interrupt=device.interrupts.msix.count > 0) as driver:
                identity = driver.identify()
    except (IOMMUFDError, OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{device.name}: {identity.model}, serial number {identity.serial}, firmware {identity.firmware}")


if __name__ == "__main__":
    main()
