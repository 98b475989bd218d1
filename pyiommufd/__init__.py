"""Linux's iommufd from Python: discovery, claims, the bind and attach lifecycle, DMA mappings, registers."""

from pyiommufd.errors import (
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
from pyiommufd.host.claims.claim import Claim
from pyiommufd.host.claims.plan import ClaimPlan, Move, plan_claim
from pyiommufd.host.claims.release import recover, release
from pyiommufd.host.claims.steps import Action, Report, Step
from pyiommufd.host.devices import HostDevice, find_device, list_devices
from pyiommufd.host.groups import (
    Group,
    ReservedRegion,
    find_group,
    list_groups,
)
from pyiommufd.host.monitor import DeviceEvent, Monitor
from pyiommufd.host.users import User
from pyiommufd.kernel.arguments import SupportsFileno
from pyiommufd.kernel.attachment import (
    AttachPreview,
    ChangeKind,
    DMAChange,
    Verdict,
)
from pyiommufd.kernel.buffer import DMABuffer
from pyiommufd.kernel.config_space import (
    CapabilityID,
    Command,
    ConfigSpace,
    ExtendedCapabilityID,
    PCICapability,
)
from pyiommufd.kernel.device import Device
from pyiommufd.kernel.device_file import DeviceFile
from pyiommufd.kernel.device_info import (
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
from pyiommufd.kernel.dirty_bitmap import DirtyBitmap
from pyiommufd.kernel.eventfd import EventFD
from pyiommufd.kernel.fault_queue import FaultQueue, PagePermission, PageRequest
from pyiommufd.kernel.hot_reset import DependentDevice, HotResetInfo
from pyiommufd.kernel.hw_info import (
    AMD,
    ArmSMMUv3,
    HWCapability,
    HWInfo,
    HWInfoType,
    IntelVTd,
    Tegra241CMDQV,
)
from pyiommufd.kernel.hwpt import HWPT
from pyiommufd.kernel.interrupt import (
    APIRQIndex,
    CCWIRQIndex,
    Interrupt,
    IRQFlag,
    IRQIndex,
    UnmaskEvent,
)
from pyiommufd.kernel.interrupts import Interrupts
from pyiommufd.kernel.ioas import IOAS, PhysicalRange
from pyiommufd.kernel.ioeventfd import IOEventFD
from pyiommufd.kernel.iommufd import IOMMUFD
from pyiommufd.kernel.iova import IOVARange
from pyiommufd.kernel.irq import IRQ
from pyiommufd.kernel.kernel_object import KernelObject
from pyiommufd.kernel.mapping import DMAMapping, DMAMappings
from pyiommufd.kernel.page_table import PageTable
from pyiommufd.kernel.region import Region, RegionFlag, RegionIndex
from pyiommufd.kernel.removal import RemovalWatch
from pyiommufd.kernel.window import Window

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
