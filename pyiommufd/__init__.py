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
    DeviceLike,
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
from .host.claims.plan import ClaimPlan, Move, plan_claim
from .host.claims.release import recover, release
from .host.claims.steps import Action, Report, Step
from .host.devices import HostDevice, find_device, list_devices
from .host.groups import (
    Group,
    ReservedRegion,
    find_group,
    list_groups,
)
from .host.monitor import DeviceEvent, Monitor
from .host.users import User
from .kernel.arguments import SupportsFileno
from .kernel.attachment import (
    AttachPreview,
    ChangeKind,
    DMAChange,
    Verdict,
)
from .kernel.buffer import DMABuffer
from .kernel.config_space import (
    CapabilityID,
    Command,
    ConfigSpace,
    ExtendedCapabilityID,
    PCICapability,
)
from .kernel.device import Device
from .kernel.device_file import DeviceFile
from .kernel.device_info import (
    AtomicFlag,
    DeviceCapability,
    DeviceFlag,
    DeviceInfo,
    MmapArea,
    MSIXMappable,
    PCIAtomics,
    RegionCapability,
    RegionType,
    SparseMmap,
    UnknownCapability,
    ZPCIBase,
    ZPCIGroup,
    ZPCIPfip,
    ZPCIUtil,
)
from .kernel.dirty_bitmap import DirtyBitmap
from .kernel.eventfd import EventFD
from .kernel.fault_queue import FaultQueue, PagePermission, PageRequest
from .kernel.hot_reset import DependentDevice, HotResetInfo
from .kernel.hw_info import (
    AMD,
    ArmSMMUv3,
    HWCapability,
    HWInfo,
    HWInfoType,
    IntelVTd,
    Tegra241CMDQV,
)
from .kernel.hwpt import HWPT
from .kernel.interrupt import (
    APIRQIndex,
    CCWIRQIndex,
    Interrupt,
    IRQFlag,
    IRQIndex,
    UnmaskEvent,
)
from .kernel.interrupts import Interrupts
from .kernel.ioas import IOAS, PhysicalRange
from .kernel.ioeventfd import IOEventFD
from .kernel.iommufd import IOMMUFD
from .kernel.iova import IOVARange
from .kernel.irq import IRQ
from .kernel.kernel_object import KernelObject
from .kernel.mapping import DMAMapping, DMAMappings
from .kernel.page_table import PageTable
from .kernel.region import Region, RegionFlag, RegionIndex
from .kernel.removal import RemovalWatch
from .kernel.window import Window

__all__ = [
    "AMD",
    "HWPT",
    "IOAS",
    "IOMMUFD",
    "IRQ",
    "APIRQIndex",
    "AccessDeniedError",
    "Action",
    "AlreadyAttachedError",
    "AlreadyMappedError",
    "ArmSMMUv3",
    "AtomicFlag",
    "AttachPreview",
    "BusyError",
    "CCWIRQIndex",
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
    "DMAMappings",
    "DependentDevice",
    "Device",
    "DeviceCapability",
    "DeviceEvent",
    "DeviceFile",
    "DeviceFlag",
    "DeviceInfo",
    "DeviceLike",
    "DeviceNotFoundError",
    "DirtyBitmap",
    "EventFD",
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
    "IOEventFD",
    "IOMMUFDError",
    "IOVARange",
    "IRQFlag",
    "IRQIndex",
    "InUseError",
    "IntelVTd",
    "Interrupt",
    "Interrupts",
    "IoctlError",
    "KernelObject",
    "MSIXMappable",
    "MissingLibraryError",
    "MmapArea",
    "Monitor",
    "Move",
    "NotFoundError",
    "PCIAtomics",
    "PCICapability",
    "PagePermission",
    "PageRequest",
    "PageTable",
    "PhysicalRange",
    "Refusal",
    "Region",
    "RegionCapability",
    "RegionFaultError",
    "RegionFlag",
    "RegionIndex",
    "RegionType",
    "RemovalWatch",
    "Report",
    "ReservedRegion",
    "SparseMmap",
    "Step",
    "SupportsFileno",
    "Tegra241CMDQV",
    "UnknownCapability",
    "UnmaskEvent",
    "UnsupportedError",
    "User",
    "VectorsUnavailableError",
    "Verdict",
    "Window",
    "ZPCIBase",
    "ZPCIGroup",
    "ZPCIPfip",
    "ZPCIUtil",
    "find_device",
    "find_group",
    "list_devices",
    "list_groups",
    "plan_claim",
    "recover",
    "release",
]
