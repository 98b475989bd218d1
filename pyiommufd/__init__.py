"""Linux's iommufd from Python: discovery, claims, the bind and attach lifecycle, DMA mappings, registers."""

from pyiommufd.version import __version__ as __version__

TYPE_CHECKING = False  # type checkers take this name for true; typing is slow to import
if TYPE_CHECKING:
    from pyiommufd.causes import Cause, DeviceLike, Refusal
    from pyiommufd.errors import (
        AccessDeniedError,
        AlreadyAttachedError,
        AlreadyMappedError,
        BusyError,
        ClaimError,
        ClaimRefusedError,
        ClosedError,
        CloseError,
        CommandLineError,
        DeviceNotFoundError,
        ForkedError,
        GroupConflictError,
        GroupNotViableError,
        HandoverError,
        InUseError,
        InvalidationError,
        IoctlError,
        IOMMUFDError,
        MigrationError,
        MigrationPathError,
        MissingLibraryError,
        NotFoundError,
        RegionFaultError,
        UnsupportedError,
        VectorsUnavailableError,
    )
    from pyiommufd.host.claims.claim import Claim
    from pyiommufd.host.claims.plan import ClaimPlan, Move, plan_claim
    from pyiommufd.host.claims.release import recover, release
    from pyiommufd.host.claims.steps import Action, Report, Step
    from pyiommufd.host.discovery.devices import HostDevice, find_device, find_group, list_devices, list_groups
    from pyiommufd.host.discovery.groups import (
        Group,
        ReservedRegion,
    )
    from pyiommufd.host.discovery.monitor import DeviceEvent, Monitor
    from pyiommufd.host.users import User
    from pyiommufd.kernel.device.config_space import (
        CapabilityID,
        Command,
        ConfigSpace,
        ExtendedCapabilityID,
        PCICapability,
    )
    from pyiommufd.kernel.device.device import Device
    from pyiommufd.kernel.device.device_file import DeviceFile
    from pyiommufd.kernel.device.device_info import (
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
    from pyiommufd.kernel.device.features.dma_buf import DMABuf
    from pyiommufd.kernel.device.features.dma_logging import DMALogging
    from pyiommufd.kernel.device.features.feature import DeviceFeature, Feature, FeatureAccess
    from pyiommufd.kernel.device.features.low_power import LowPower
    from pyiommufd.kernel.device.features.migration import (
        Migration,
        MigrationProgress,
        PrecopyInfo,
        SupportsRead,
        SupportsWrite,
    )
    from pyiommufd.kernel.device.features.migration_states import MigrationFlag, MigrationState
    from pyiommufd.kernel.device.features.migration_stream import MigrationStream
    from pyiommufd.kernel.device.graphics import Graphics, GraphicsPlane, PixelSource, PlaneBuffer, PlaneType
    from pyiommufd.kernel.device.hot_reset import DependentDevice, HotResetInfo
    from pyiommufd.kernel.device.region import Region
    from pyiommufd.kernel.device.region_bytes import RegionFlag, RegionIndex
    from pyiommufd.kernel.device.removal import RemovalWatch
    from pyiommufd.kernel.interrupts.eventfd import EventFD
    from pyiommufd.kernel.interrupts.interrupt import (
        APIRQIndex,
        CCWIRQIndex,
        Interrupt,
        IRQFlag,
        IRQIndex,
        UnmaskEvent,
    )
    from pyiommufd.kernel.interrupts.interrupts import Interrupts
    from pyiommufd.kernel.interrupts.ioeventfd import IOEventFD
    from pyiommufd.kernel.interrupts.irq import IRQ
    from pyiommufd.kernel.iommufd import IOMMUFD
    from pyiommufd.kernel.kernel_object import KernelObject
    from pyiommufd.kernel.memory.arguments import SupportsFileno
    from pyiommufd.kernel.memory.buffer import DMABuffer
    from pyiommufd.kernel.memory.ioas import IOAS, PhysicalRange
    from pyiommufd.kernel.memory.iova import IOVARange
    from pyiommufd.kernel.memory.mapping import DMAMapping, DMAMappings
    from pyiommufd.kernel.pagetables.attachment import (
        AttachPreview,
        ChangeKind,
        DMAChange,
        Verdict,
    )
    from pyiommufd.kernel.pagetables.dirty_bitmap import DirtyBitmap
    from pyiommufd.kernel.pagetables.fault_queue import FaultQueue, PagePermission, PageRequest, PageRequestGroup
    from pyiommufd.kernel.pagetables.hw_info import (
        AMD,
        ArmSMMUv3,
        HWCapability,
        HWInfo,
        HWInfoType,
        IntelVTd,
        Tegra241CMDQV,
    )
    from pyiommufd.kernel.pagetables.hwpt import HWPT
    from pyiommufd.kernel.pagetables.invalidation import SMMUv3Command, VTdInvalidation
    from pyiommufd.kernel.pagetables.nested import NestedHWPT
    from pyiommufd.kernel.pagetables.nested_data import AMDGuest, RawData, SMMUv3Stage1, TypedData, VTdStage1
    from pyiommufd.kernel.pagetables.page_table import PageTable
    from pyiommufd.kernel.virtual.event_queue import VEventQueue
    from pyiommufd.kernel.virtual.events import (
        LostEvents,
        RawEvent,
        SMMUv3Event,
        SMMUv3EventType,
        Tegra241Errors,
        VEvent,
        VEventType,
    )
    from pyiommufd.kernel.virtual.hw_queue import HWQueue, HWQueueType
    from pyiommufd.kernel.virtual.vdevice import VDevice
    from pyiommufd.kernel.virtual.viommu import VIOMMU, Tegra241VIntf, VIOMMUType
    from pyiommufd.kernel.window import Window
else:
    # The same for Python: the module that a name is in is imported when the name is first used.
    from pyiommufd.on_demand import on_demand as _on_demand

    __getattr__, __dir__ = _on_demand(
        __name__,
        {
            "diagnose": "",
            "causes": "Cause DeviceLike Refusal",
            "errors": """
                AccessDeniedError AlreadyAttachedError AlreadyMappedError BusyError ClaimError ClaimRefusedError
                ClosedError CloseError CommandLineError DeviceNotFoundError ForkedError GroupConflictError
                GroupNotViableError HandoverError InUseError InvalidationError IoctlError IOMMUFDError MigrationError
                MigrationPathError MissingLibraryError NotFoundError RegionFaultError UnsupportedError
                VectorsUnavailableError
            """,
            "host": "",
            "host.claims.claim": "Claim",
            "host.claims.plan": "ClaimPlan Move plan_claim",
            "host.claims.release": "recover release",
            "host.claims.steps": "Action Report Step",
            "host.discovery.devices": "HostDevice find_device find_group list_devices list_groups",
            "host.discovery.groups": "Group ReservedRegion",
            "host.discovery.monitor": "DeviceEvent Monitor",
            "host.users": "User",
            "kernel": "",
            "kernel.device.config_space": "CapabilityID Command ConfigSpace ExtendedCapabilityID PCICapability",
            "kernel.device.device": "Device",
            "kernel.device.device_file": "DeviceFile",
            "kernel.device.device_info": """
                AtomicFlag DeviceCapability DeviceFlag DeviceInfo MmapArea MSIXMappable PCIAtomics RegionCapability
                RegionType SparseMmap UnknownCapability ZPCIBase ZPCIGroup ZPCIPfip ZPCIUtil
            """,
            "kernel.device.features.dma_buf": "DMABuf",
            "kernel.device.features.dma_logging": "DMALogging",
            "kernel.device.features.feature": "DeviceFeature Feature FeatureAccess",
            "kernel.device.features.low_power": "LowPower",
            "kernel.device.features.migration": "Migration MigrationProgress PrecopyInfo SupportsRead SupportsWrite",
            "kernel.device.features.migration_states": "MigrationFlag MigrationState",
            "kernel.device.features.migration_stream": "MigrationStream",
            "kernel.device.graphics": "Graphics GraphicsPlane PixelSource PlaneBuffer PlaneType",
            "kernel.device.hot_reset": "DependentDevice HotResetInfo",
            "kernel.device.region": "Region",
            "kernel.device.region_bytes": "RegionFlag RegionIndex",
            "kernel.device.removal": "RemovalWatch",
            "kernel.interrupts.eventfd": "EventFD",
            "kernel.interrupts.interrupt": "APIRQIndex CCWIRQIndex Interrupt IRQFlag IRQIndex UnmaskEvent",
            "kernel.interrupts.interrupts": "Interrupts",
            "kernel.interrupts.ioeventfd": "IOEventFD",
            "kernel.interrupts.irq": "IRQ",
            "kernel.iommufd": "IOMMUFD",
            "kernel.kernel_object": "KernelObject",
            "kernel.memory.arguments": "SupportsFileno",
            "kernel.memory.buffer": "DMABuffer",
            "kernel.memory.ioas": "IOAS PhysicalRange",
            "kernel.memory.iova": "IOVARange",
            "kernel.memory.mapping": "DMAMapping DMAMappings",
            "kernel.pagetables.attachment": "AttachPreview ChangeKind DMAChange Verdict",
            "kernel.pagetables.dirty_bitmap": "DirtyBitmap",
            "kernel.pagetables.fault_queue": "FaultQueue PagePermission PageRequest PageRequestGroup",
            "kernel.pagetables.hw_info": "AMD ArmSMMUv3 HWCapability HWInfo HWInfoType IntelVTd Tegra241CMDQV",
            "kernel.pagetables.hwpt": "HWPT",
            "kernel.pagetables.invalidation": "SMMUv3Command VTdInvalidation",
            "kernel.pagetables.nested": "NestedHWPT",
            "kernel.pagetables.nested_data": "AMDGuest RawData SMMUv3Stage1 TypedData VTdStage1",
            "kernel.pagetables.page_table": "PageTable",
            "kernel.virtual.event_queue": "VEventQueue",
            "kernel.virtual.events": """
                LostEvents RawEvent SMMUv3Event SMMUv3EventType Tegra241Errors VEvent VEventType
            """,
            "kernel.virtual.hw_queue": "HWQueue HWQueueType",
            "kernel.virtual.vdevice": "VDevice",
            "kernel.virtual.viommu": "VIOMMU Tegra241VIntf VIOMMUType",
            "kernel.window": "Window",
            "uapi": "",
        },
    )

__all__ = [
    "AMD",
    "HWPT",
    "IOAS",
    "IOMMUFD",
    "IRQ",
    "VIOMMU",
    "AMDGuest",
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
    "CommandLineError",
    "ConfigSpace",
    "DMABuf",
    "DMABuffer",
    "DMAChange",
    "DMALogging",
    "DMAMapping",
    "DMAMappings",
    "DependentDevice",
    "Device",
    "DeviceCapability",
    "DeviceEvent",
    "DeviceFeature",
    "DeviceFile",
    "DeviceFlag",
    "DeviceInfo",
    "DeviceLike",
    "DeviceNotFoundError",
    "DirtyBitmap",
    "EventFD",
    "ExtendedCapabilityID",
    "FaultQueue",
    "Feature",
    "FeatureAccess",
    "ForkedError",
    "Graphics",
    "GraphicsPlane",
    "Group",
    "GroupConflictError",
    "GroupNotViableError",
    "HWCapability",
    "HWInfo",
    "HWInfoType",
    "HWQueue",
    "HWQueueType",
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
    "InvalidationError",
    "IoctlError",
    "KernelObject",
    "LostEvents",
    "LowPower",
    "MSIXMappable",
    "Migration",
    "MigrationError",
    "MigrationFlag",
    "MigrationPathError",
    "MigrationProgress",
    "MigrationState",
    "MigrationStream",
    "MissingLibraryError",
    "MmapArea",
    "Monitor",
    "Move",
    "NestedHWPT",
    "NotFoundError",
    "PCIAtomics",
    "PCICapability",
    "PagePermission",
    "PageRequest",
    "PageRequestGroup",
    "PageTable",
    "PhysicalRange",
    "PixelSource",
    "PlaneBuffer",
    "PlaneType",
    "PrecopyInfo",
    "RawData",
    "RawEvent",
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
    "SMMUv3Command",
    "SMMUv3Event",
    "SMMUv3EventType",
    "SMMUv3Stage1",
    "SparseMmap",
    "Step",
    "SupportsFileno",
    "SupportsRead",
    "SupportsWrite",
    "Tegra241CMDQV",
    "Tegra241Errors",
    "Tegra241VIntf",
    "TypedData",
    "UnknownCapability",
    "UnmaskEvent",
    "UnsupportedError",
    "User",
    "VDevice",
    "VEvent",
    "VEventQueue",
    "VEventType",
    "VIOMMUType",
    "VTdInvalidation",
    "VTdStage1",
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
