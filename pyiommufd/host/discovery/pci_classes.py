"""What kind of device a PCI class code stands for, in words: for machines without a PCI id database."""

from __future__ import annotations

# PCI Code and ID Assignment Specification 1.15, chapter 1.
_CLASSES = {
    0x01: "Storage controller",
    0x02: "Network controller",
    0x03: "Display controller",
    0x04: "Multimedia device",
    0x05: "Memory controller",
    0x06: "Bridge",
    0x07: "Communication controller",
    0x08: "System device",
    0x09: "Input device",
    0x0A: "Docking station",
    0x0B: "Processor",
    0x0C: "Serial bus controller",
    0x0D: "Wireless controller",
    0x0E: "Intelligent I/O controller",
    0x0F: "Satellite receiver",
    0x10: "Encryption controller",
    0x11: "Signal processor",
    0x12: "Accelerator",
    0x13: "Measuring device",
    0x40: "Coprocessor",
}
_SUBCLASSES = {
    0x0001: "VGA-compatible device",
    0x0100: "SCSI controller",
    0x0101: "IDE controller",
    0x0102: "Floppy disk controller",
    0x0104: "RAID controller",
    0x0105: "ATA controller",
    0x0106: "SATA controller",
    0x0107: "SAS controller",
    0x0108: "NVMe controller",
    0x0109: "UFS controller",
    0x0200: "Ethernet controller",
    0x0207: "InfiniBand controller",
    0x0208: "Fabric controller",
    0x0300: "VGA controller",
    0x0302: "3D controller",
    0x0400: "Video device",
    0x0401: "Audio device",
    0x0402: "Telephony device",
    0x0403: "HD audio device",
    0x0500: "RAM controller",
    0x0501: "Flash memory controller",
    0x0502: "CXL memory device",
    0x0600: "Host bridge",
    0x0601: "ISA bridge",
    0x0602: "EISA bridge",
    0x0604: "PCI bridge",
    0x0605: "PCMCIA bridge",
    0x0607: "CardBus bridge",
    0x0609: "Semi-transparent PCI bridge",
    0x0700: "Serial port",
    0x0701: "Parallel port",
    0x0702: "Multi-port serial controller",
    0x0703: "Modem",
    0x0800: "Interrupt controller",
    0x0801: "DMA controller",
    0x0802: "Timer",
    0x0803: "Real-time clock",
    0x0804: "Hot-plug controller",
    0x0805: "SD card controller",
    0x0806: "IOMMU",
    0x0807: "Root complex event collector",
    0x0900: "Keyboard controller",
    0x0901: "Digitizer",
    0x0902: "Mouse controller",
    0x0C00: "FireWire controller",
    0x0C03: "USB controller",
    0x0C04: "Fibre Channel controller",
    0x0C05: "SMBus controller",
    0x0C06: "InfiniBand controller",
    0x0C07: "IPMI controller",
    0x0C09: "CAN controller",
    0x0D00: "Infrared controller",
    0x0D10: "Radio controller",
    0x0D11: "Bluetooth controller",
    0x0D20: "Wi-Fi controller",
    0x0D21: "Wi-Fi controller",
}


def class_words(class_code: int) -> str | None:
    """A class in words, such as ``Ethernet controller``, or None where it says nothing of the device.

    Args:
        class_code: Class, subclass and interface as one number of 24 bits; the interface does not matter.
    """
    return _SUBCLASSES.get(class_code >> 8) or _CLASSES.get(class_code >> 16)
