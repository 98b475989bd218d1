"""The driver of QEMU's edu device, under the name that users import it by."""

from pyiommufd.testing.drivers.edu import BUFFER_SIZE, DEVICE_ID, DMA_BITS, VENDOR_ID, EduDriver

__all__ = ["BUFFER_SIZE", "DEVICE_ID", "DMA_BITS", "VENDOR_ID", "EduDriver"]
