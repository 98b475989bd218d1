"""Linux's iommufd from Python: discovery, claims, the bind and attach lifecycle, DMA mappings, registers."""

from .errors import (
    AccessDeniedError,
    AlreadyAttachedError,
    AlreadyMappedError,
    BusyError,
    Cause,
    ClaimError,
    ClaimRefusedError,
    ClosedError,
    CloseError,
    DeviceNotFoundError,
    ForkedError,
    GroupConflictError,
    GroupNotViableError,
    HandoverError,
    InUseError,
    IoctlError,
    IOMMUFDError,
    MissingLibraryError,
    NotFoundError,
    Refusal,
    RegionFaultError,
    UnsupportedError,
    VectorsUnavailableError,
)
from .host.claims.claim import Claim
from .host.claims.plan import ClaimPlan, plan_claim
from .host.claims.release import recover, release
from .host.devices import HostDevice, find_device, list_devices
from .host.groups import Group, find_group, list_groups
from .host.monitor import DeviceEvent, Monitor
from .kernel.attachment import AttachPreview, ChangeKind, DMAChange, Verdict
from .kernel.buffer import DMABuffer
from .kernel.config_space import CapabilityID, Command, ConfigSpace, ExtendedCapabilityID
from .kernel.device import Device
from .kernel.device_file import DeviceFile
from .kernel.device_info import DeviceInfo
from .kernel.dirty_bitmap import DirtyBitmap
from .kernel.fault_queue import FaultQueue, PagePermission, PageRequest
from .kernel.hot_reset import HotResetInfo
from .kernel.hw_info import HWCapability, HWInfo, HWInfoType
from .kernel.hwpt import HWPT
from .kernel.interrupt import Interrupt
from .kernel.ioas import IOAS
from .kernel.iommufd import IOMMUFD
from .kernel.mapping import DMAMapping
from .kernel.region import Region

__all__ = [
    "HWPT",
    "IOAS",
    "IOMMUFD",
    "AccessDeniedError",
    "AlreadyAttachedError",
    "AlreadyMappedError",
    "AttachPreview",
    "BusyError",
    "CapabilityID",
    "Cause",
    "ChangeKind",
    "Claim",
    "ClaimError",
    "ClaimPlan",
    "ClaimRefusedError",
    "CloseError",
    "ClosedError",
    "Command",
    "ConfigSpace",
    "DMABuffer",
    "DMAChange",
    "DMAMapping",
    "Device",
    "DeviceEvent",
    "DeviceFile",
    "DeviceInfo",
    "DeviceNotFoundError",
    "DirtyBitmap",
    "ExtendedCapabilityID",
    "FaultQueue",
    "ForkedError",
    "Group",
    "GroupConflictError",
    "GroupNotViableError",
    "HWCapability",
    "HWInfo",
    "HWInfoType",
    "HandoverError",
    "HostDevice",
    "HotResetInfo",
    "IOMMUFDError",
    "InUseError",
    "Interrupt",
    "IoctlError",
    "MissingLibraryError",
    "Monitor",
    "NotFoundError",
    "PagePermission",
    "PageRequest",
    "Refusal",
    "Region",
    "RegionFaultError",
    "UnsupportedError",
    "VectorsUnavailableError",
    "Verdict",
    "find_device",
    "find_group",
    "list_devices",
    "list_groups",
    "plan_claim",
    "recover",
    "release",
]
