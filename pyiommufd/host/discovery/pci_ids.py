"""Names of PCI hardware, from the PCI id database where one is installed (``hwdata``, ``pci.ids``)."""

from __future__ import annotations

import functools
from pathlib import Path

from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.pci_classes import class_words

FILES = (
    Path("/usr/share/hwdata/pci.ids"),
    Path("/usr/share/misc/pci.ids"),
    Path("/usr/share/pci.ids"),
    Path("/usr/share/misc/pci.ids.gz"),
)
"""Where distributions put the database."""


class PciIds:
    """A PCI id database.

    A name is looked for in the text when it is asked for: the file has 40,000 lines, of which a machine needs few.

    Thread safety: may be shared.

    Args:
        text: The database, as in the file ``pci.ids``; empty: no names.
    """

    def __init__(self, text: bytes = b"") -> None:
        self._text = b"\n" + text
        self._blocks: dict[bytes, bytes] = {}
        self._names: dict[tuple[int, ...], str | None] = {}

    @classmethod
    def load(cls, *paths: Path) -> PciIds:
        """The first of these files that can be read (`FILES` when none is named); one without names if none can."""
        for path in paths or FILES:
            try:
                data = path.read_bytes()
                if path.suffix == ".gz":
                    import gzip  # here, as most have the plain file

                    data = gzip.decompress(data)
                return cls(data)
            except (OSError, EOFError):
                continue
        return cls()

    def vendor(self, vendor_id: int) -> str | None:
        """The name of a vendor, such as ``Intel Corporation``; None where the database has none."""
        return self._named((vendor_id,), b"%04x" % vendor_id)

    def device(self, vendor_id: int, device_id: int) -> str | None:
        """The name of a device; None where the database has none."""
        return self._named((vendor_id, device_id), b"%04x" % vendor_id, b"\n\t%04x  " % device_id)

    def device_class(self, class_code: int) -> str | None:
        """The name of a class, such as ``Ethernet controller``; that of `class_words` where the database has none.

        Args:
            class_code: Class, subclass and interface as one number of 24 bits; the interface does not matter.
        """
        kind, subclass = class_code >> 16, class_code >> 8 & 0xFF
        key = b"C %02x" % kind
        return (
            self._named((kind, subclass, 0), key, b"\n\t%02x  " % subclass)
            or self._named((kind, 0, 0, 0), key)
            or class_words(class_code)
        )

    def describe(self, device: HostDevice) -> str:
        """A device in words: vendor and name, or its class; as much of these as is known."""
        if device.vendor_id is None or device.device_id is None:
            return ""
        vendor = self.vendor(device.vendor_id)
        name = self.device(device.vendor_id, device.device_id)
        if name is None and device.class_code is not None:
            name = self.device_class(device.class_code)
        return " ".join(part for part in (vendor, name) if part)

    def _named(self, key: tuple[int, ...], head: bytes, entry: bytes | None = None) -> str | None:
        if key not in self._names:
            block = self._block(head)
            if entry is None:
                name = block.partition(b"\n")[0]
            else:
                at = block.find(entry)
                name = b"" if at < 0 else block[at + len(entry) :].partition(b"\n")[0]
            self._names[key] = name.decode("utf-8", "replace").strip() or None
        return self._names[key]

    def _block(self, head: bytes) -> bytes:
        """A vendor or class: its name, and the lines below it."""
        if head not in self._blocks:
            start = self._text.find(b"\n%s  " % head)
            block = b""
            if start >= 0:
                start += len(head) + 3
                end = start
                # It ends at the next line that is neither indented nor a comment.
                while (end := self._text.find(b"\n", end)) >= 0 and self._text[end + 1 : end + 2] in (b"\t", b"#"):
                    end += 1
                block = self._text[start:] if end < 0 else self._text[start:end]
            self._blocks[head] = block
        return self._blocks[head]


@functools.cache
def pci_ids() -> PciIds:
    """This machine's database, read once."""
    return PciIds.load()
