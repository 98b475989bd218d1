"""DMA that the IOMMU has refused, as the kernel's log tells of it.

Supplementary, never proof: the kernel limits these lines in rate (VT-d: three faults in five seconds) and hardware
merges faults, so a missing line proves nothing. Blocked DMA is shown by the data, which did not change. Of a device
without an IOMMU no DMA is blocked, and none faults.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pyiommufd.closing import Closing
from pyiommufd.host.discovery.aliases import devices_of_requester
from pyiommufd.host.discovery.devices import HostDevice, list_devices
from pyiommufd.testing.checks.dmesg import PATH as KMSG
from pyiommufd.testing.checks.dmesg import KernelLog, LogLine

RATE_INTERVAL = 5.0
"""Seconds in which the kernel logs a few faults only (DEFAULT_RATELIMIT_INTERVAL)."""

LOG_PATTERN = (
    r"DMAR: (?:DRHD: handling fault status reg|\[DMA (?:Read|Write))|IO_PAGE_FAULT"
    r"|(?:domain|page|unknown) fault from EP|arm-smmu-v3 \S+: (?:event|\t0x|(?:un)?priv )"
    r"|(?:dmar_fault|amd_iommu\w*|arm_smmu_evtq_thread): \d+ callbacks suppressed"
)
"""Every line that a DMA fault leaves in the log, for `Dmesg.expect`."""

# VT-d. Older kernels leave out the domain, and still older ones put the PASID behind the device.
_INTEL = re.compile(
    r"DMAR: \[DMA (?P<access>Read|Write)(?: NO_PASID| PASID (?P<pasid>0x[0-9a-f]+))?\] Request device "
    r"\[(?P<requester>[0-9a-f:.]+)\](?: PASID (?P<old_pasid>[0-9a-f]+))? fault addr (?P<address>(?:0x)?[0-9a-f]+) "
    r"\[fault reason (?:0x)?[0-9a-f]+\] (?P<reason>.*)"
)
# AMD-Vi names the device in front where it knows it, else inside.
_AMD = re.compile(
    r"(?:(?P<known>[0-9a-f]{4}:[0-9a-f:.]+): )?AMD-Vi: (?P<reason>Event logged) "
    r"\[IO_PAGE_FAULT (?:device=(?P<requester>[0-9a-f:.]+) )?"
    r"domain=0x[0-9a-f]+ address=(?P<address>0x[0-9a-f]+) flags=(?P<flags>0x[0-9a-f]+)\]"
)
# virtio's endpoint is the requester id where the endpoints of a PCI segment are counted from 0, as QEMU does.
_VIRTIO = re.compile(
    r"(?P<reason>domain|page|unknown) fault from EP (?P<endpoint>\d+)(?: at (?P<address>0x[0-9a-f]+))?"
    r"(?: \[(?P<access>[RWX]*)\])?"
)
# Arm's SMMUv3; what the access was is in another line, and older kernels have no such lines at all. Where a stream has
# no device, its id is taken for the requester id, as it is on QEMU's machines.
_ARM = re.compile(
    r"arm-smmu-v3 \S+: event: (?P<reason>\w+) client: (?:(?P<client>[0-9a-f]{4}:[0-9a-f:.]+)|.*?) "
    r"sid: (?P<sid>0x[0-9a-f]+|0) ssid: (?P<pasid>0x[0-9a-f]+|0)(?: iova: (?P<address>0x[0-9a-f]+|0))?"
)
_AMD_WRITE = 0x20
_NO_PASID = 0xFFFFFFFF


class Access(StrEnum):
    """What a device wanted with memory."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class DMAFault:
    """DMA that the IOMMU has refused.

    Attributes:
        requester: The PCI address that the request bore, with its domain. It may be an alias, which is in no folder
            of sysfs.
        devices: The devices that use this requester id; one of them made the request. A PCIe-to-PCI bridge replaces
            the requester ids of the devices behind it, so then all of them are listed.
        address: The I/O virtual address, as far as the IOMMU keeps it (VT-d: its page); None where it does not say.
        access: Read or write; None where it does not say.
        pasid: The PASID, or None without one.
        reason: The IOMMU's word for what was wrong.
        line: The line of the log.
    """

    requester: str
    devices: tuple[HostDevice, ...]
    address: int | None
    access: Access | None
    pasid: int | None
    reason: str
    line: LogLine

    def __str__(self) -> str:
        where = "" if self.address is None else f" at {self.address:#x}"
        names = ", ".join(device.name for device in self.devices) or "no known device"
        return f"DMA {self.access or 'access'}{where} by {self.requester} ({names}): {self.reason}"


def parse_fault(line: LogLine) -> DMAFault | None:
    """The DMA fault that a line of the log tells of, by VT-d, AMD-Vi, virtio-iommu or SMMUv3; None: of none."""
    if line.facility != 0:
        return None
    text, pasid = line.text, None
    if match := _INTEL.search(text):
        requester, access = match["requester"], match["access"]
        number = match["pasid"] or match["old_pasid"]
        pasid = None if number is None or int(number, 16) == _NO_PASID else int(number, 16)
    elif match := _AMD.search(text):
        requester = match["requester"] or match["known"] or ""
        access = "Write" if int(match["flags"], 16) & _AMD_WRITE else "Read"
    elif match := _ARM.search(text):
        requester, access = match["client"] or _address(int(match["sid"], 16)), ""
        pasid = int(match["pasid"], 16) or None
    elif match := _VIRTIO.search(text):
        requester = _address(int(match["endpoint"]))
        access = {"R": "Read", "W": "Write"}.get(match["access"] or "", "")
    else:
        return None
    if requester.count(":") == 1:
        requester = f"0000:{requester}"
    return DMAFault(
        requester=requester,
        devices=devices_of_requester(requester, list_devices("pci")),
        address=None if match["address"] is None else int(match["address"], 16),
        access=Access(access.lower()) if access else None,
        pasid=pasid,
        reason=match["reason"],
        line=line,
    )


def _address(number: int) -> str:
    """The PCI address of a requester id, with the segment above it."""
    return f"{number >> 16:04x}:{number >> 8 & 0xFF:02x}:{number >> 3 & 0x1F:02x}.{number & 7}"


class DMAFaults(Closing):
    """The DMA faults since this was made: the fixture ``dma_faults``. A context manager.

    Supplementary: lines may be missing; see the module.

    Raises:
        OSError: The kernel's log may not be read.
    """

    def __init__(self) -> None:
        self._log = KernelLog()
        self._faults: list[DMAFault] = []

    @property
    def faults(self) -> tuple[DMAFault, ...]:
        """Those that the log tells of so far, the oldest first."""
        self._faults += filter(None, map(parse_fault, self._log.read()))
        return tuple(self._faults)

    def of(self, device: HostDevice | str) -> tuple[DMAFault, ...]:
        """Those that may have been by this device: it is in their set of `DMAFault.devices`.

        Args:
            device: The device, or its name on its bus.
        """
        name = device if isinstance(device, str) else device.name
        return tuple(fault for fault in self.faults if any(one.name == name for one in fault.devices))

    def wait(self, accepted: Callable[[DMAFault], bool] = lambda _: True, *, seconds: float = 2.0) -> DMAFault | None:
        """Wait for a fault. Faults that are there already count.

        Args:
            accepted: Says whether a fault is the one.
            seconds: How long to wait.

        Returns:
            The first such fault; None where no line came, which does not mean that there was no fault.
        """
        end = time.monotonic() + seconds
        while True:
            for fault in self.faults:
                if accepted(fault):
                    return fault
            if time.monotonic() > end:
                return None
            time.sleep(0.005)

    def clear(self) -> None:
        """Forget the faults so far."""
        self._log.read()
        self._faults.clear()

    @staticmethod
    def wait_for_rate_limit() -> None:
        """Wait until the kernel's limit of rate lets the next fault into the log: about `RATE_INTERVAL` seconds.

        Raises:
            OSError: ``/dev/kmsg`` may not be written to and read: it takes root.
        """
        pattern = re.compile(LOG_PATTERN)
        # The log's clock differs from the others, by seconds in an emulated machine: a line of our own says its time.
        with open(KMSG, "wb", buffering=0) as file:
            file.write(b"<7>pyiommufd: waiting until DMA faults are logged again\n")
        with KernelLog(from_start=True) as log:
            lines = log.read()
        last = max((line.time for line in lines if pattern.search(line.text)), default=None)
        if last is not None:
            time.sleep(max(0.0, last + RATE_INTERVAL + 0.5 - lines[-1].time))

    def close(self) -> None:
        """Stop reading the log."""
        self._log.close()
