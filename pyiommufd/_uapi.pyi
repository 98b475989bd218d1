# Written by `python build_cffi.py --stub` from the headers in pyiommufd/uapi: change those.

from typing import Any, Final, final, type_check_only

from _cffi_backend import FFI

# Which fields a struct has, only C knows: Any.
@type_check_only
class _FFI(FFI):
    def new(self, cdecl: str | FFI.CType, init: Any = ...) -> Any: ...
    def cast(self, cdecl: str | FFI.CType, value: FFI.CData | int) -> Any: ...

@final
@type_check_only
class _Lib:
    IOMMUFD_TYPE: Final[int]
    IOMMUFD_CMD_BASE: Final[int]
    IOMMUFD_CMD_DESTROY: Final[int]
    IOMMUFD_CMD_IOAS_ALLOC: Final[int]
    IOMMUFD_CMD_IOAS_ALLOW_IOVAS: Final[int]
    IOMMUFD_CMD_IOAS_COPY: Final[int]
    IOMMUFD_CMD_IOAS_IOVA_RANGES: Final[int]
    IOMMUFD_CMD_IOAS_MAP: Final[int]
    IOMMUFD_CMD_IOAS_UNMAP: Final[int]
    IOMMUFD_CMD_OPTION: Final[int]
    IOMMUFD_CMD_VFIO_IOAS: Final[int]
    IOMMUFD_CMD_HWPT_ALLOC: Final[int]
    IOMMUFD_CMD_GET_HW_INFO: Final[int]
    IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING: Final[int]
    IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP: Final[int]
    IOMMUFD_CMD_HWPT_INVALIDATE: Final[int]
    IOMMUFD_CMD_FAULT_QUEUE_ALLOC: Final[int]
    IOMMUFD_CMD_IOAS_MAP_FILE: Final[int]
    IOMMUFD_CMD_VIOMMU_ALLOC: Final[int]
    IOMMUFD_CMD_VDEVICE_ALLOC: Final[int]
    IOMMUFD_CMD_IOAS_CHANGE_PROCESS: Final[int]
    IOMMUFD_CMD_VEVENTQ_ALLOC: Final[int]
    IOMMUFD_CMD_HW_QUEUE_ALLOC: Final[int]
    IOMMUFD_CMD_IOAS_NOIOMMU_GET_PA: Final[int]
    IOMMU_DESTROY: Final[int]
    IOMMU_IOAS_ALLOC: Final[int]
    IOMMU_IOAS_ALLOW_IOVAS: Final[int]
    IOMMU_IOAS_COPY: Final[int]
    IOMMU_IOAS_IOVA_RANGES: Final[int]
    IOMMU_IOAS_MAP: Final[int]
    IOMMU_IOAS_UNMAP: Final[int]
    IOMMU_OPTION: Final[int]
    IOMMU_VFIO_IOAS: Final[int]
    IOMMU_HWPT_ALLOC: Final[int]
    IOMMU_GET_HW_INFO: Final[int]
    IOMMU_HWPT_SET_DIRTY_TRACKING: Final[int]
    IOMMU_HWPT_GET_DIRTY_BITMAP: Final[int]
    IOMMU_HWPT_INVALIDATE: Final[int]
    IOMMU_FAULT_QUEUE_ALLOC: Final[int]
    IOMMU_IOAS_MAP_FILE: Final[int]
    IOMMU_VIOMMU_ALLOC: Final[int]
    IOMMU_VDEVICE_ALLOC: Final[int]
    IOMMU_IOAS_CHANGE_PROCESS: Final[int]
    IOMMU_VEVENTQ_ALLOC: Final[int]
    IOMMU_HW_QUEUE_ALLOC: Final[int]
    IOMMU_IOAS_NOIOMMU_GET_PA: Final[int]
    IOMMU_IOAS_MAP_FIXED_IOVA: Final[int]
    IOMMU_IOAS_MAP_WRITEABLE: Final[int]
    IOMMU_IOAS_MAP_READABLE: Final[int]
    IOMMU_OPTION_RLIMIT_MODE: Final[int]
    IOMMU_OPTION_HUGE_PAGES: Final[int]
    IOMMU_OPTION_OP_SET: Final[int]
    IOMMU_OPTION_OP_GET: Final[int]
    IOMMU_VFIO_IOAS_GET: Final[int]
    IOMMU_VFIO_IOAS_SET: Final[int]
    IOMMU_VFIO_IOAS_CLEAR: Final[int]
    IOMMU_HWPT_ALLOC_NEST_PARENT: Final[int]
    IOMMU_HWPT_ALLOC_DIRTY_TRACKING: Final[int]
    IOMMU_HWPT_FAULT_ID_VALID: Final[int]
    IOMMU_HWPT_ALLOC_PASID: Final[int]
    IOMMU_HWPT_DATA_NONE: Final[int]
    IOMMU_HWPT_DATA_VTD_S1: Final[int]
    IOMMU_HWPT_DATA_ARM_SMMUV3: Final[int]
    IOMMU_HWPT_DATA_AMD_GUEST: Final[int]
    IOMMU_VTD_S1_SRE: Final[int]
    IOMMU_VTD_S1_EAFE: Final[int]
    IOMMU_VTD_S1_WPE: Final[int]
    IOMMU_HW_INFO_TYPE_NONE: Final[int]
    IOMMU_HW_INFO_TYPE_DEFAULT: Final[int]
    IOMMU_HW_INFO_TYPE_INTEL_VTD: Final[int]
    IOMMU_HW_INFO_TYPE_ARM_SMMUV3: Final[int]
    IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV: Final[int]
    IOMMU_HW_INFO_TYPE_AMD: Final[int]
    IOMMU_HW_INFO_FLAG_INPUT_TYPE: Final[int]
    IOMMU_HW_CAP_DIRTY_TRACKING: Final[int]
    IOMMU_HW_CAP_PCI_PASID_EXEC: Final[int]
    IOMMU_HW_CAP_PCI_PASID_PRIV: Final[int]
    IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED: Final[int]
    IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17: Final[int]
    IOMMU_HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI: Final[int]
    IOMMU_HWPT_DIRTY_TRACKING_ENABLE: Final[int]
    IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR: Final[int]
    IOMMU_HWPT_INVALIDATE_DATA_VTD_S1: Final[int]
    IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3: Final[int]
    IOMMU_VTD_INV_FLAGS_LEAF: Final[int]
    IOMMU_PGFAULT_FLAGS_PASID_VALID: Final[int]
    IOMMU_PGFAULT_FLAGS_LAST_PAGE: Final[int]
    IOMMU_PGFAULT_PERM_READ: Final[int]
    IOMMU_PGFAULT_PERM_WRITE: Final[int]
    IOMMU_PGFAULT_PERM_EXEC: Final[int]
    IOMMU_PGFAULT_PERM_PRIV: Final[int]
    IOMMUFD_PAGE_RESP_SUCCESS: Final[int]
    IOMMUFD_PAGE_RESP_INVALID: Final[int]
    IOMMU_VIOMMU_TYPE_DEFAULT: Final[int]
    IOMMU_VIOMMU_TYPE_ARM_SMMUV3: Final[int]
    IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV: Final[int]
    IOMMU_VEVENTQ_FLAG_LOST_EVENTS: Final[int]
    IOMMU_VEVENTQ_TYPE_DEFAULT: Final[int]
    IOMMU_VEVENTQ_TYPE_ARM_SMMUV3: Final[int]
    IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV: Final[int]
    IOMMU_HW_QUEUE_TYPE_DEFAULT: Final[int]
    IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV: Final[int]
    VFIO_TYPE: Final[int]
    VFIO_BASE: Final[int]
    VFIO_DEVICE_GET_INFO: Final[int]
    VFIO_DEVICE_GET_REGION_INFO: Final[int]
    VFIO_DEVICE_GET_IRQ_INFO: Final[int]
    VFIO_DEVICE_SET_IRQS: Final[int]
    VFIO_DEVICE_RESET: Final[int]
    VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: Final[int]
    VFIO_DEVICE_PCI_HOT_RESET: Final[int]
    VFIO_DEVICE_QUERY_GFX_PLANE: Final[int]
    VFIO_DEVICE_GET_GFX_DMABUF: Final[int]
    VFIO_DEVICE_IOEVENTFD: Final[int]
    VFIO_DEVICE_FEATURE: Final[int]
    VFIO_DEVICE_BIND_IOMMUFD: Final[int]
    VFIO_DEVICE_ATTACH_IOMMUFD_PT: Final[int]
    VFIO_DEVICE_DETACH_IOMMUFD_PT: Final[int]
    VFIO_MIG_GET_PRECOPY_INFO: Final[int]
    VFIO_DEVICE_BIND_FLAG_TOKEN: Final[int]
    VFIO_DEVICE_ATTACH_PASID: Final[int]
    VFIO_DEVICE_DETACH_PASID: Final[int]
    VFIO_DEVICE_FLAGS_RESET: Final[int]
    VFIO_DEVICE_FLAGS_PCI: Final[int]
    VFIO_DEVICE_FLAGS_PLATFORM: Final[int]
    VFIO_DEVICE_FLAGS_AMBA: Final[int]
    VFIO_DEVICE_FLAGS_CCW: Final[int]
    VFIO_DEVICE_FLAGS_AP: Final[int]
    VFIO_DEVICE_FLAGS_FSL_MC: Final[int]
    VFIO_DEVICE_FLAGS_CAPS: Final[int]
    VFIO_DEVICE_FLAGS_CDX: Final[int]
    VFIO_DEVICE_INFO_CAP_ZPCI_BASE: Final[int]
    VFIO_DEVICE_INFO_CAP_ZPCI_GROUP: Final[int]
    VFIO_DEVICE_INFO_CAP_ZPCI_UTIL: Final[int]
    VFIO_DEVICE_INFO_CAP_ZPCI_PFIP: Final[int]
    VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP: Final[int]
    VFIO_PCI_ATOMIC_COMP32: Final[int]
    VFIO_PCI_ATOMIC_COMP64: Final[int]
    VFIO_PCI_ATOMIC_COMP128: Final[int]
    VFIO_DEVICE_INFO_ZPCI_FLAG_REFRESH: Final[int]
    VFIO_REGION_INFO_FLAG_READ: Final[int]
    VFIO_REGION_INFO_FLAG_WRITE: Final[int]
    VFIO_REGION_INFO_FLAG_MMAP: Final[int]
    VFIO_REGION_INFO_FLAG_CAPS: Final[int]
    VFIO_REGION_INFO_CAP_SPARSE_MMAP: Final[int]
    VFIO_REGION_INFO_CAP_TYPE: Final[int]
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE: Final[int]
    VFIO_REGION_TYPE_PCI_VENDOR_TYPE: Final[int]
    VFIO_REGION_TYPE_PCI_VENDOR_MASK: Final[int]
    VFIO_REGION_TYPE_GFX: Final[int]
    VFIO_REGION_TYPE_CCW: Final[int]
    VFIO_REGION_TYPE_MIGRATION_DEPRECATED: Final[int]
    VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION: Final[int]
    VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG: Final[int]
    VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG: Final[int]
    VFIO_REGION_SUBTYPE_GFX_EDID: Final[int]
    VFIO_DEVICE_GFX_LINK_STATE_UP: Final[int]
    VFIO_DEVICE_GFX_LINK_STATE_DOWN: Final[int]
    VFIO_IRQ_INFO_EVENTFD: Final[int]
    VFIO_IRQ_INFO_MASKABLE: Final[int]
    VFIO_IRQ_INFO_AUTOMASKED: Final[int]
    VFIO_IRQ_INFO_NORESIZE: Final[int]
    VFIO_IRQ_SET_DATA_NONE: Final[int]
    VFIO_IRQ_SET_DATA_BOOL: Final[int]
    VFIO_IRQ_SET_DATA_EVENTFD: Final[int]
    VFIO_IRQ_SET_ACTION_MASK: Final[int]
    VFIO_IRQ_SET_ACTION_UNMASK: Final[int]
    VFIO_IRQ_SET_ACTION_TRIGGER: Final[int]
    VFIO_IRQ_SET_DATA_TYPE_MASK: Final[int]
    VFIO_IRQ_SET_ACTION_TYPE_MASK: Final[int]
    VFIO_PCI_BAR0_REGION_INDEX: Final[int]
    VFIO_PCI_BAR1_REGION_INDEX: Final[int]
    VFIO_PCI_BAR2_REGION_INDEX: Final[int]
    VFIO_PCI_BAR3_REGION_INDEX: Final[int]
    VFIO_PCI_BAR4_REGION_INDEX: Final[int]
    VFIO_PCI_BAR5_REGION_INDEX: Final[int]
    VFIO_PCI_ROM_REGION_INDEX: Final[int]
    VFIO_PCI_CONFIG_REGION_INDEX: Final[int]
    VFIO_PCI_VGA_REGION_INDEX: Final[int]
    VFIO_PCI_NUM_REGIONS: Final[int]
    VFIO_PCI_INTX_IRQ_INDEX: Final[int]
    VFIO_PCI_MSI_IRQ_INDEX: Final[int]
    VFIO_PCI_MSIX_IRQ_INDEX: Final[int]
    VFIO_PCI_ERR_IRQ_INDEX: Final[int]
    VFIO_PCI_REQ_IRQ_INDEX: Final[int]
    VFIO_PCI_NUM_IRQS: Final[int]
    VFIO_AP_REQ_IRQ_INDEX: Final[int]
    VFIO_AP_CFG_CHG_IRQ_INDEX: Final[int]
    VFIO_AP_NUM_IRQS: Final[int]
    VFIO_CCW_IO_IRQ_INDEX: Final[int]
    VFIO_CCW_CRW_IRQ_INDEX: Final[int]
    VFIO_CCW_REQ_IRQ_INDEX: Final[int]
    VFIO_CCW_NUM_IRQS: Final[int]
    VFIO_PCI_DEVID_OWNED: Final[int]
    VFIO_PCI_DEVID_NOT_OWNED: Final[int]
    VFIO_PCI_HOT_RESET_FLAG_DEV_ID: Final[int]
    VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED: Final[int]
    VFIO_GFX_PLANE_TYPE_PROBE: Final[int]
    VFIO_GFX_PLANE_TYPE_DMABUF: Final[int]
    VFIO_GFX_PLANE_TYPE_REGION: Final[int]
    VFIO_DEVICE_IOEVENTFD_8: Final[int]
    VFIO_DEVICE_IOEVENTFD_16: Final[int]
    VFIO_DEVICE_IOEVENTFD_32: Final[int]
    VFIO_DEVICE_IOEVENTFD_64: Final[int]
    VFIO_DEVICE_IOEVENTFD_SIZE_MASK: Final[int]
    VFIO_DEVICE_FEATURE_MASK: Final[int]
    VFIO_DEVICE_FEATURE_GET: Final[int]
    VFIO_DEVICE_FEATURE_SET: Final[int]
    VFIO_DEVICE_FEATURE_PROBE: Final[int]
    VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: Final[int]
    VFIO_DEVICE_FEATURE_MIGRATION: Final[int]
    VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: Final[int]
    VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: Final[int]
    VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: Final[int]
    VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: Final[int]
    VFIO_DEVICE_FEATURE_DMA_LOGGING_START: Final[int]
    VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: Final[int]
    VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: Final[int]
    VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: Final[int]
    VFIO_DEVICE_FEATURE_BUS_MASTER: Final[int]
    VFIO_DEVICE_FEATURE_DMA_BUF: Final[int]
    VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: Final[int]
    VFIO_DEVICE_FEATURE_ZPCI_ERROR: Final[int]
    VFIO_MIGRATION_STOP_COPY: Final[int]
    VFIO_MIGRATION_P2P: Final[int]
    VFIO_MIGRATION_PRE_COPY: Final[int]
    VFIO_PRECOPY_INFO_REINIT: Final[int]
    VFIO_DEVICE_STATE_ERROR: Final[int]
    VFIO_DEVICE_STATE_STOP: Final[int]
    VFIO_DEVICE_STATE_RUNNING: Final[int]
    VFIO_DEVICE_STATE_STOP_COPY: Final[int]
    VFIO_DEVICE_STATE_RESUMING: Final[int]
    VFIO_DEVICE_STATE_RUNNING_P2P: Final[int]
    VFIO_DEVICE_STATE_PRE_COPY: Final[int]
    VFIO_DEVICE_STATE_PRE_COPY_P2P: Final[int]
    VFIO_DEVICE_STATE_NR: Final[int]
    VFIO_DEVICE_FEATURE_CLEAR_MASTER: Final[int]
    VFIO_DEVICE_FEATURE_SET_MASTER: Final[int]
    VFIO_API_VERSION: Final[int]
    VFIO_GET_API_VERSION: Final[int]
    VFIO_CHECK_EXTENSION: Final[int]
    VFIO_SET_IOMMU: Final[int]
    VFIO_GROUP_GET_STATUS: Final[int]
    VFIO_GROUP_SET_CONTAINER: Final[int]
    VFIO_GROUP_UNSET_CONTAINER: Final[int]
    VFIO_GROUP_GET_DEVICE_FD: Final[int]
    VFIO_TYPE1_IOMMU: Final[int]
    VFIO_TYPE1v2_IOMMU: Final[int]
    VFIO_DMA_CC_IOMMU: Final[int]
    VFIO_NOIOMMU_IOMMU: Final[int]
    VFIO_UNMAP_ALL: Final[int]
    VFIO_UPDATE_VADDR: Final[int]
    VFIO_GROUP_FLAGS_VIABLE: Final[int]
    VFIO_GROUP_FLAGS_CONTAINER_SET: Final[int]
    VFIO_IOMMU_GET_INFO: Final[int]
    VFIO_IOMMU_MAP_DMA: Final[int]
    VFIO_IOMMU_UNMAP_DMA: Final[int]
    VFIO_IOMMU_DIRTY_PAGES: Final[int]
    VFIO_IOMMU_INFO_PGSIZES: Final[int]
    VFIO_IOMMU_INFO_CAPS: Final[int]
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: Final[int]
    VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION: Final[int]
    VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL: Final[int]
    VFIO_DMA_MAP_FLAG_READ: Final[int]
    VFIO_DMA_MAP_FLAG_WRITE: Final[int]
    VFIO_DMA_MAP_FLAG_VADDR: Final[int]
    VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP: Final[int]
    VFIO_DMA_UNMAP_FLAG_ALL: Final[int]
    VFIO_DMA_UNMAP_FLAG_VADDR: Final[int]
    VFIO_IOMMU_DIRTY_PAGES_FLAG_START: Final[int]
    VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP: Final[int]
    VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP: Final[int]
    def pyiommufd_raw_ioctl(self, fd: int, request: int, argument: FFI.CData, /) -> int: ...
    def pyiommufd_file_open(self, file: FFI.CData, path: FFI.CData | bytes, flags: int, /) -> int: ...
    def pyiommufd_file_eventfd(self, file: FFI.CData, /) -> int: ...
    def pyiommufd_file_memfd(
        self,
        file: FFI.CData,
        name: FFI.CData | bytes,
        flags: int,
        length: int,
        /,
    ) -> int: ...
    def pyiommufd_file_duplicate(self, file: FFI.CData, other: FFI.CData, /) -> int: ...
    def pyiommufd_file_close(self, file: FFI.CData, /) -> int: ...
    def pyiommufd_file_free(self, file: FFI.CData, /) -> None: ...
    def pyiommufd_file_forked(self, file: FFI.CData, /) -> None: ...
    def pyiommufd_file_same(self, file: FFI.CData, other: FFI.CData, /) -> int: ...
    def pyiommufd_file_wait(self, file: FFI.CData, milliseconds: int, /) -> int: ...
    def pyiommufd_file_waker(self, file: FFI.CData, copy: FFI.CData, /) -> int: ...
    def pyiommufd_file_readable(self, file: FFI.CData, /) -> int: ...
    def pyiommufd_file_read(
        self,
        file: FFI.CData,
        memory: FFI.CData,
        length: int,
        offset: int,
        done: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_file_write(
        self,
        file: FFI.CData,
        memory: FFI.CData | bytes,
        length: int,
        offset: int,
        /,
    ) -> int: ...
    def pyiommufd_file_change16(self, file: FFI.CData, offset: int, bits: int, on: int, /) -> int: ...
    def pyiommufd_ioctl(self, file: FFI.CData, request: int, argument: FFI.CData, /) -> int: ...
    def pyiommufd_make(
        self,
        object_: FFI.CData,
        request: int,
        command: FFI.CData,
        id_at: int,
        uses: FFI.CData,
        count: int,
        queue: FFI.CData,
        fd_at: int,
        /,
    ) -> int: ...
    def pyiommufd_object_ioctl(
        self,
        object_: FFI.CData,
        request: int,
        command: FFI.CData,
        id_at: int,
        /,
    ) -> int: ...
    def pyiommufd_destroy(self, object_: FFI.CData, /) -> int: ...
    def pyiommufd_abandon(self, object_: FFI.CData, /) -> None: ...
    def pyiommufd_ioas_map(
        self,
        ioas: FFI.CData,
        piece: FFI.CData,
        flags: int,
        user_va: FFI.CData | bytes,
        length: int,
        iova: int,
        /,
    ) -> int: ...
    def pyiommufd_ioas_map_file(
        self,
        ioas: FFI.CData,
        piece: FFI.CData,
        flags: int,
        file: int,
        start: int,
        length: int,
        iova: int,
        /,
    ) -> int: ...
    def pyiommufd_ioas_copy(
        self,
        ioas: FFI.CData,
        pieces: FFI.CData,
        count: int,
        flags: int,
        source: FFI.CData,
        src_iova: int,
        length: int,
        dst_iova: int,
        changes: int,
        /,
    ) -> int: ...
    def pyiommufd_ioas_map_many(
        self,
        ioas: FFI.CData,
        pieces: FFI.CData,
        count: int,
        flags: int,
        memory: FFI.CData | bytes,
        done: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_ioas_unmap(self, piece: FFI.CData, /) -> int: ...
    def pyiommufd_ioas_unmap_many(self, pieces: FFI.CData, count: int, /) -> int: ...
    def pyiommufd_ioas_unmap_range(
        self,
        ioas: FFI.CData,
        iova: int,
        length: int,
        pieces: FFI.CData,
        count: int,
        changes: int,
        unmapped: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_ioas_unmap_left(self, ioas: FFI.CData, piece: FFI.CData, /) -> int: ...
    def pyiommufd_ioas_first_hole(
        self,
        ioas: FFI.CData,
        iova: int,
        length: int,
        hole: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_try_page_table(
        self,
        device: FFI.CData,
        ioas: FFI.CData,
        iova: int,
        length: int,
        dst_iova: int,
        /,
    ) -> int: ...
    def pyiommufd_bind(
        self,
        cdev: FFI.CData,
        device: FFI.CData,
        owner: FFI.CData,
        token: FFI.CData | bytes,
        /,
    ) -> int: ...
    def pyiommufd_attach(
        self,
        cdev: FFI.CData,
        table: FFI.CData,
        pasid: int,
        group_on: FFI.CData,
        attached: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_detach(self, cdev: FFI.CData, pasid: int, attached: FFI.CData, /) -> int: ...
    def pyiommufd_ioeventfd(
        self,
        cdev: FFI.CData,
        offset: int,
        width: int,
        value: int,
        eventfd: FFI.CData,
        on: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_set_irqs(
        self,
        cdev: FFI.CData,
        command: FFI.CData,
        eventfds: FFI.CData,
        count: int,
        /,
    ) -> int: ...
    def pyiommufd_window_new(self, /) -> FFI.CData: ...
    def pyiommufd_window_map(
        self,
        window: FFI.CData,
        file: FFI.CData,
        offset: int,
        length: int,
        readable: int,
        writeable: int,
        /,
    ) -> int: ...
    def pyiommufd_window_unmap(self, window: FFI.CData, /) -> int: ...
    def pyiommufd_window_forget(self, window: FFI.CData, /) -> None: ...
    def pyiommufd_window_mapped(self, window: FFI.CData, /) -> int: ...
    def pyiommufd_window_free(self, window: FFI.CData, /) -> None: ...
    def pyiommufd_window_read(self, window: FFI.CData, offset: int, width: int, /) -> int: ...
    def pyiommufd_window_read64(self, window: FFI.CData, offset: int, value: FFI.CData, /) -> int: ...
    def pyiommufd_window_write(self, window: FFI.CData, offset: int, width: int, value: int, /) -> int: ...
    def pyiommufd_window_copy_out(
        self,
        window: FFI.CData,
        offset: int,
        memory: FFI.CData,
        length: int,
        done: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_window_copy_in(
        self,
        window: FFI.CData,
        offset: int,
        memory: FFI.CData | bytes,
        length: int,
        done: FFI.CData,
        /,
    ) -> int: ...

ffi: Final[_FFI]
lib: Final[_Lib]
