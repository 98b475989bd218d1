"""DMA from one device into another: the BAR of a peer as a dma-buf, and what a reset of the peer does to it.

    python examples/peer_to_peer.py [DEVICE [PEER]]

DEVICE writes to the registers of PEER by its own DMA, without the CPU. Both are edu devices of QEMU's, for which
pyiommufd has a driver, in different IOMMU groups; by default those of `pyiommufd guest`. Takes root, an IOMMU, and a
kernel of 7.3 or later with CONFIG_VFIO_NOIOMMU. PEER is reset alone, where it has a reset method of its own; otherwise
with all of its bus, if that is behind a bridge; where there is neither, nothing is done.
"""

from __future__ import annotations

import argparse
import itertools
import sys

from pyiommufd import IOMMUFD, DMABuffer, IoctlError, IOMMUFDError, find_device, plan_claim
from pyiommufd.testing.edu import DEVICE_ID, VENDOR_ID, EduDriver

MEMORY, BAR = 0x100000, 0x400000  # where DEVICE sees memory and the registers of PEER
PAGE = 4096
REGISTER = 0x80  # of an edu device: it keeps the 8 bytes that are written to it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", metavar="DEVICE", nargs="?", default="0000:00:01.0", help="such as 0000:00:01.0")
    parser.add_argument(
        "peer", metavar="PEER", nargs="?", default="0000:02:01.0", help="a device of another IOMMU group"
    )
    given = parser.parse_args()
    hosts = [find_device(given.device), find_device(given.peer)]
    for host in hosts:
        if (host.vendor_id, host.device_id) != (VENDOR_ID, DEVICE_ID):
            sys.exit(f"{host.name} is not an edu device")
    if hosts[0].group_id == hosts[1].group_id:
        sys.exit(f"{hosts[0].name} and {hosts[1].name} are in the same IOMMU group")

    with plan_claim(hosts).apply(), IOMMUFD() as iommufd:
        device, peer = (iommufd.bind(host) for host in hosts)
        alone = set(peer.reset_methods) - {"bus", "cxl_bus"}  # those take its bus, and work where nothing else is on it
        together = [peer.name]
        if not alone:
            try:
                together = [one.name for one in peer.hot_reset_info().devices]
            except IoctlError:
                sys.exit(f"{peer.name} can be reset neither alone nor with its bus: take another PEER")
        ioas = iommufd.alloc_ioas()
        device.attach(ioas)
        device.bus_master = True
        memory = DMABuffer(PAGE)
        ioas.map(memory, iova=MEMORY)
        with EduDriver(device) as driver, peer.region(0).map() as registers:
            values = itertools.count(0x1234)

            def arrives() -> bool:
                """Have the device copy 8 fresh bytes to the peer's register. Whether they are there then."""
                value = next(values)
                memory[:8] = value.to_bytes(8, "little")
                driver.copy_in(MEMORY, 8)
                driver.copy_out(BAR + REGISTER, 8)
                return registers.read64(REGISTER) == value

            with peer.region(0).export_dma_buf(0, PAGE) as dma_buf:
                print("not mapped:", "arrived" if arrives() else "nothing arrived")
                mapping = ioas.map_file(dma_buf, dma_buf.size, iova=BAR)
                print("mapped:", "arrived" if arrives() else "nothing arrived")
                if alone:
                    peer.reset()
                else:
                    peer.hot_reset()
                print(f"reset of {', '.join(together)}: revoked is {mapping.revoked}")
                print("after the reset:", "arrived" if arrives() else "nothing arrived")
                mapping.unmap()
                mapping = ioas.map_file(dma_buf, dma_buf.size, iova=BAR)
                print("mapped anew:", "arrived" if arrives() else "nothing arrived")


if __name__ == "__main__":
    try:
        main()
    except (IOMMUFDError, OSError) as error:
        sys.exit(str(error))
