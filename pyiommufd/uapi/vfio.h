/* SPDX-License-Identifier: MIT */
/*
 * The ABI of VFIO as of Linux 7.3: devices (/dev/vfio/devices/vfioX), and the group and container interface that
 * iommufd still speaks for older programs. Same two readers and same rules as iommufd.h.
 *
 * Not here: sPAPR and EEH (Power's own), CCW's regions, NVLink and the migration regions of before 5.18, none of which
 * an iommufd user meets, and the mediated devices' API strings, which are sysfs text.
 *
 * Structs start with argsz. GET_INFO and GET_REGION_INFO whose capabilities do not fit succeed without them and raise
 * argsz to what is needed; GET_PCI_HOT_RESET_INFO answers ENOSPC.
 */
#ifndef PYIOMMUFD_UAPI_VFIO_H
#define PYIOMMUFD_UAPI_VFIO_H

#include <stdint.h>
#include <linux/ioctl.h>

/* As in iommufd.h: the kernel's own header is made empty after this one, and refused before it. */
#ifdef VFIO_H
#error "include pyiommufd/uapi/vfio.h in place of <linux/vfio.h>, not after it"
#endif
#define VFIO_H

/* Commands of a device */

#define VFIO_TYPE ';'
#define VFIO_BASE 100

#define VFIO_DEVICE_GET_INFO _IO(VFIO_TYPE, VFIO_BASE + 7)
#define VFIO_DEVICE_GET_REGION_INFO _IO(VFIO_TYPE, VFIO_BASE + 8)
#define VFIO_DEVICE_GET_IRQ_INFO _IO(VFIO_TYPE, VFIO_BASE + 9)
#define VFIO_DEVICE_SET_IRQS _IO(VFIO_TYPE, VFIO_BASE + 10)
#define VFIO_DEVICE_RESET _IO(VFIO_TYPE, VFIO_BASE + 11)
#define VFIO_DEVICE_GET_PCI_HOT_RESET_INFO _IO(VFIO_TYPE, VFIO_BASE + 12)
#define VFIO_DEVICE_PCI_HOT_RESET _IO(VFIO_TYPE, VFIO_BASE + 13)
#define VFIO_DEVICE_QUERY_GFX_PLANE _IO(VFIO_TYPE, VFIO_BASE + 14)
#define VFIO_DEVICE_GET_GFX_DMABUF _IO(VFIO_TYPE, VFIO_BASE + 15) /* the argument is a uint32_t dmabuf_id */
#define VFIO_DEVICE_IOEVENTFD _IO(VFIO_TYPE, VFIO_BASE + 16)
#define VFIO_DEVICE_FEATURE _IO(VFIO_TYPE, VFIO_BASE + 17)
#define VFIO_DEVICE_BIND_IOMMUFD _IO(VFIO_TYPE, VFIO_BASE + 18)
#define VFIO_DEVICE_ATTACH_IOMMUFD_PT _IO(VFIO_TYPE, VFIO_BASE + 19)
#define VFIO_DEVICE_DETACH_IOMMUFD_PT _IO(VFIO_TYPE, VFIO_BASE + 20)
#define VFIO_MIG_GET_PRECOPY_INFO _IO(VFIO_TYPE, VFIO_BASE + 21) /* of a migration data fd */

/* Bind and attach: of a cdev only */

#define VFIO_DEVICE_BIND_FLAG_TOKEN (1U << 0)
#define VFIO_DEVICE_ATTACH_PASID (1U << 0)
#define VFIO_DEVICE_DETACH_PASID (1U << 0)

struct vfio_device_bind_iommufd { /* token_uuid_ptr: 16 bytes, with the flag only */
	uint32_t argsz, flags;
	int32_t iommufd;
	uint32_t out_devid;
	uint64_t token_uuid_ptr;
};

struct vfio_device_attach_iommufd_pt { /* pt_id: an IOAS or an HWPT; comes back as the HWPT in use */
	uint32_t argsz, flags, pt_id, pasid;
};

struct vfio_device_detach_iommufd_pt {
	uint32_t argsz, flags, pasid;
};

/* Capability chains: offsets count from the start of the info struct, 0 ends the chain. */

struct vfio_info_cap_header {
	uint16_t id, version;
	uint32_t next;
};

/* Device information */

#define VFIO_DEVICE_FLAGS_RESET (1U << 0)
#define VFIO_DEVICE_FLAGS_PCI (1U << 1)
#define VFIO_DEVICE_FLAGS_PLATFORM (1U << 2)
#define VFIO_DEVICE_FLAGS_AMBA (1U << 3)
#define VFIO_DEVICE_FLAGS_CCW (1U << 4)
#define VFIO_DEVICE_FLAGS_AP (1U << 5)
#define VFIO_DEVICE_FLAGS_FSL_MC (1U << 6)
#define VFIO_DEVICE_FLAGS_CAPS (1U << 7)
#define VFIO_DEVICE_FLAGS_CDX (1U << 8)

#define VFIO_DEVICE_INFO_CAP_ZPCI_BASE 1
#define VFIO_DEVICE_INFO_CAP_ZPCI_GROUP 2
#define VFIO_DEVICE_INFO_CAP_ZPCI_UTIL 3
#define VFIO_DEVICE_INFO_CAP_ZPCI_PFIP 4
#define VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP 5

#define VFIO_PCI_ATOMIC_COMP32 (1U << 0)
#define VFIO_PCI_ATOMIC_COMP64 (1U << 1)
#define VFIO_PCI_ATOMIC_COMP128 (1U << 2)

#define VFIO_DEVICE_INFO_ZPCI_FLAG_REFRESH 1

struct vfio_device_info {
	uint32_t argsz, flags, num_regions, num_irqs, cap_offset, pad;
};

struct vfio_device_info_cap_pci_atomic_comp {
	struct vfio_info_cap_header header;
	uint32_t flags, reserved;
};

struct vfio_device_info_cap_zpci_base {
	struct vfio_info_cap_header header;
	uint64_t start_dma, end_dma;
	uint16_t pchid, vfn, fmb_length;
	uint8_t pft, gid;
	uint32_t fh, ccdf_err_length;
};

struct vfio_device_info_cap_zpci_group {
	struct vfio_info_cap_header header;
	uint64_t dasm, msi_addr, flags;
	uint16_t mui, noi, maxstbl;
	uint8_t version, reserved;
	uint16_t imaxstbl;
};

struct vfio_device_info_cap_zpci_util {
	struct vfio_info_cap_header header;
	uint32_t size;
	uint8_t util_str[];
};

struct vfio_device_info_cap_zpci_pfip {
	struct vfio_info_cap_header header;
	uint32_t size;
	uint8_t pfip[];
};

/* Regions: size in bytes; offset is where the region starts in the device's file. */

#define VFIO_REGION_INFO_FLAG_READ (1U << 0)
#define VFIO_REGION_INFO_FLAG_WRITE (1U << 1)
#define VFIO_REGION_INFO_FLAG_MMAP (1U << 2)
#define VFIO_REGION_INFO_FLAG_CAPS (1U << 3)

#define VFIO_REGION_INFO_CAP_SPARSE_MMAP 1
#define VFIO_REGION_INFO_CAP_TYPE 2
#define VFIO_REGION_INFO_CAP_MSIX_MAPPABLE 3

struct vfio_region_info {
	uint32_t argsz, flags, index, cap_offset;
	uint64_t size, offset;
};

struct vfio_region_sparse_mmap_area { /* offset counts from the region's start */
	uint64_t offset, size;
};

struct vfio_region_info_cap_sparse_mmap {
	struct vfio_info_cap_header header;
	uint32_t nr_areas, reserved;
	struct vfio_region_sparse_mmap_area areas[];
};

struct vfio_region_info_cap_type {
	struct vfio_info_cap_header header;
	uint32_t type, subtype;
};

/* Region types: a PCI vendor's own is VENDOR_TYPE with the vendor id in VENDOR_MASK. */

#define VFIO_REGION_TYPE_PCI_VENDOR_TYPE (1U << 31)
#define VFIO_REGION_TYPE_PCI_VENDOR_MASK 0xffffU
#define VFIO_REGION_TYPE_GFX 1
#define VFIO_REGION_TYPE_CCW 2
#define VFIO_REGION_TYPE_MIGRATION_DEPRECATED 3

#define VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION 1
#define VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG 2
#define VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG 3
#define VFIO_REGION_SUBTYPE_GFX_EDID 1

#define VFIO_DEVICE_GFX_LINK_STATE_UP 1
#define VFIO_DEVICE_GFX_LINK_STATE_DOWN 2

struct vfio_region_gfx_edid { /* the start of such a region; sizes in bytes, 0 as resolution: no limit */
	uint32_t edid_offset, edid_max_size, edid_size, max_xres, max_yres, link_state;
};

/* Interrupts */

#define VFIO_IRQ_INFO_EVENTFD (1U << 0)
#define VFIO_IRQ_INFO_MASKABLE (1U << 1)
#define VFIO_IRQ_INFO_AUTOMASKED (1U << 2)
#define VFIO_IRQ_INFO_NORESIZE (1U << 3)

#define VFIO_IRQ_SET_DATA_NONE (1U << 0)
#define VFIO_IRQ_SET_DATA_BOOL (1U << 1)
#define VFIO_IRQ_SET_DATA_EVENTFD (1U << 2)
#define VFIO_IRQ_SET_ACTION_MASK (1U << 3)
#define VFIO_IRQ_SET_ACTION_UNMASK (1U << 4)
#define VFIO_IRQ_SET_ACTION_TRIGGER (1U << 5)
#define VFIO_IRQ_SET_DATA_TYPE_MASK (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_DATA_EVENTFD)
#define VFIO_IRQ_SET_ACTION_TYPE_MASK (VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_ACTION_TRIGGER)

struct vfio_irq_info {
	uint32_t argsz, flags, index, count;
};

struct vfio_irq_set { /* data: nothing, `count` booleans of a byte, or `count` int32_t eventfds */
	uint32_t argsz, flags, index, start, count;
	uint8_t data[];
};

/* What the indices of regions and interrupts mean, by bus */

enum {
	VFIO_PCI_BAR0_REGION_INDEX = 0,
	VFIO_PCI_BAR1_REGION_INDEX = 1,
	VFIO_PCI_BAR2_REGION_INDEX = 2,
	VFIO_PCI_BAR3_REGION_INDEX = 3,
	VFIO_PCI_BAR4_REGION_INDEX = 4,
	VFIO_PCI_BAR5_REGION_INDEX = 5,
	VFIO_PCI_ROM_REGION_INDEX = 6,
	VFIO_PCI_CONFIG_REGION_INDEX = 7,
	VFIO_PCI_VGA_REGION_INDEX = 8,
	VFIO_PCI_NUM_REGIONS = 9, /* a device's own regions follow from here */
};

enum {
	VFIO_PCI_INTX_IRQ_INDEX = 0,
	VFIO_PCI_MSI_IRQ_INDEX = 1,
	VFIO_PCI_MSIX_IRQ_INDEX = 2,
	VFIO_PCI_ERR_IRQ_INDEX = 3,
	VFIO_PCI_REQ_IRQ_INDEX = 4, /* the host wants the device back */
	VFIO_PCI_NUM_IRQS = 5,
};

enum {
	VFIO_AP_REQ_IRQ_INDEX = 0,
	VFIO_AP_CFG_CHG_IRQ_INDEX = 1,
	VFIO_AP_NUM_IRQS = 2,
};

enum {
	VFIO_CCW_IO_IRQ_INDEX = 0,
	VFIO_CCW_CRW_IRQ_INDEX = 1,
	VFIO_CCW_REQ_IRQ_INDEX = 2,
	VFIO_CCW_NUM_IRQS = 3,
};

/* Hot reset: of everything on a bus or slot. devfn is slot << 3 | function. */

#define VFIO_PCI_DEVID_OWNED 0
#define VFIO_PCI_DEVID_NOT_OWNED 0xffffffffU /* the kernel's header says -1; the field it stands in is unsigned */

#define VFIO_PCI_HOT_RESET_FLAG_DEV_ID (1U << 0)
#define VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED (1U << 1)

struct vfio_pci_dependent_device { /* devid where the info has FLAG_DEV_ID, else group_id */
	union {
		uint32_t group_id;
		uint32_t devid;
	};
	uint16_t segment;
	uint8_t bus, devfn;
};

struct vfio_pci_hot_reset_info {
	uint32_t argsz, flags, count;
	struct vfio_pci_dependent_device devices[];
};

struct vfio_pci_hot_reset { /* no fds from a cdev */
	uint32_t argsz, flags, count;
	int32_t group_fds[];
};

/* Displays of mediated devices */

#define VFIO_GFX_PLANE_TYPE_PROBE (1U << 0)
#define VFIO_GFX_PLANE_TYPE_DMABUF (1U << 1)
#define VFIO_GFX_PLANE_TYPE_REGION (1U << 2)

struct vfio_device_gfx_plane_info { /* drm_*: DRM's numbers; stride and size in bytes, the rest in pixels */
	uint32_t argsz, flags, drm_plane_type, drm_format;
	uint64_t drm_format_mod;
	uint32_t width, height, stride, size, x_pos, y_pos, x_hot, y_hot;
	union {
		uint32_t region_index;
		uint32_t dmabuf_id;
	};
	uint32_t reserved;
};

/* A register write at each signal of an eventfd; fd -1 undoes it. */

#define VFIO_DEVICE_IOEVENTFD_8 (1U << 0)
#define VFIO_DEVICE_IOEVENTFD_16 (1U << 1)
#define VFIO_DEVICE_IOEVENTFD_32 (1U << 2)
#define VFIO_DEVICE_IOEVENTFD_64 (1U << 3)
#define VFIO_DEVICE_IOEVENTFD_SIZE_MASK 0xfU

struct vfio_device_ioeventfd { /* offset counts from the start of the device's file */
	uint32_t argsz, flags;
	uint64_t offset, data;
	int32_t fd;
	uint32_t reserved;
};

/* Features: a number in the low bits of flags; GET and SET exclude each other, except to PROBE for both. */

#define VFIO_DEVICE_FEATURE_MASK 0xffffU
#define VFIO_DEVICE_FEATURE_GET (1U << 16)
#define VFIO_DEVICE_FEATURE_SET (1U << 17)
#define VFIO_DEVICE_FEATURE_PROBE (1U << 18)

#define VFIO_DEVICE_FEATURE_PCI_VF_TOKEN 0 /* 16 bytes */
#define VFIO_DEVICE_FEATURE_MIGRATION 1
#define VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE 2
#define VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY 3 /* no data */
#define VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP 4
#define VFIO_DEVICE_FEATURE_LOW_POWER_EXIT 5 /* no data */
#define VFIO_DEVICE_FEATURE_DMA_LOGGING_START 6
#define VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP 7 /* no data */
#define VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT 8
#define VFIO_DEVICE_FEATURE_MIG_DATA_SIZE 9
#define VFIO_DEVICE_FEATURE_BUS_MASTER 10 /* CDX only: PCI has the bit in its configuration space */
#define VFIO_DEVICE_FEATURE_DMA_BUF 11
#define VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 12 /* no data */
#define VFIO_DEVICE_FEATURE_ZPCI_ERROR 13

struct vfio_device_feature {
	uint32_t argsz, flags;
	uint8_t data[];
};

/* Migration: the states a device is moved through, and the estimate of what is left to copy */

#define VFIO_MIGRATION_STOP_COPY (1U << 0)
#define VFIO_MIGRATION_P2P (1U << 1)
#define VFIO_MIGRATION_PRE_COPY (1U << 2)

#define VFIO_PRECOPY_INFO_REINIT (1U << 0) /* told only after MIG_PRECOPY_INFOv2 was set */

enum vfio_device_mig_state {
	VFIO_DEVICE_STATE_ERROR = 0,
	VFIO_DEVICE_STATE_STOP = 1,
	VFIO_DEVICE_STATE_RUNNING = 2,
	VFIO_DEVICE_STATE_STOP_COPY = 3,
	VFIO_DEVICE_STATE_RESUMING = 4,
	VFIO_DEVICE_STATE_RUNNING_P2P = 5,
	VFIO_DEVICE_STATE_PRE_COPY = 6,
	VFIO_DEVICE_STATE_PRE_COPY_P2P = 7,
	VFIO_DEVICE_STATE_NR = 8,
};

struct vfio_device_feature_migration {
	uint64_t flags;
};

struct vfio_device_feature_mig_state { /* data_fd: a new fd of the caller's, or -1 */
	uint32_t device_state;
	int32_t data_fd;
};

struct vfio_device_feature_mig_data_size { /* bytes */
	uint64_t stop_copy_length;
};

struct vfio_precopy_info { /* bytes */
	uint32_t argsz, flags;
	uint64_t initial_bytes, dirty_bytes;
};

/* Low power */

struct vfio_device_low_power_entry_with_wakeup {
	int32_t wakeup_eventfd;
	uint32_t reserved;
};

/* DMA logging by the device itself; `ranges` and `bitmap` are pointers, the bitmap has a bit a page. */

struct vfio_device_feature_dma_logging_control {
	uint64_t page_size;
	uint32_t num_ranges, __reserved;
	uint64_t ranges;
};

struct vfio_device_feature_dma_logging_range {
	uint64_t iova, length;
};

struct vfio_device_feature_dma_logging_report {
	uint64_t iova, length, page_size, bitmap;
};

/* The remaining features */

#define VFIO_DEVICE_FEATURE_CLEAR_MASTER 0
#define VFIO_DEVICE_FEATURE_SET_MASTER 1

struct vfio_device_feature_bus_master {
	uint32_t op;
};

struct vfio_region_dma_range { /* offset counts from the region's start */
	uint64_t offset, length;
};

struct vfio_device_feature_dma_buf { /* the ioctl returns the dma-buf's fd */
	uint32_t region_index, open_flags, flags, nr_ranges;
	struct vfio_region_dma_range dma_ranges[];
};

struct vfio_device_feature_zpci_err { /* data: a pointer to ccdf_err_length bytes (of the zPCI base capability) */
	uint64_t data;
};

/* Groups and containers: the interface from before cdevs; with /dev/iommu as the container it maps into vfio_ioas. */

#define VFIO_API_VERSION 0

#define VFIO_GET_API_VERSION _IO(VFIO_TYPE, VFIO_BASE + 0)
#define VFIO_CHECK_EXTENSION _IO(VFIO_TYPE, VFIO_BASE + 1)
#define VFIO_SET_IOMMU _IO(VFIO_TYPE, VFIO_BASE + 2)
#define VFIO_GROUP_GET_STATUS _IO(VFIO_TYPE, VFIO_BASE + 3)
#define VFIO_GROUP_SET_CONTAINER _IO(VFIO_TYPE, VFIO_BASE + 4)
#define VFIO_GROUP_UNSET_CONTAINER _IO(VFIO_TYPE, VFIO_BASE + 5)
#define VFIO_GROUP_GET_DEVICE_FD _IO(VFIO_TYPE, VFIO_BASE + 6)

#define VFIO_TYPE1_IOMMU 1
#define VFIO_TYPE1v2_IOMMU 3
#define VFIO_DMA_CC_IOMMU 4
#define VFIO_NOIOMMU_IOMMU 8
#define VFIO_UNMAP_ALL 9
#define VFIO_UPDATE_VADDR 10

#define VFIO_GROUP_FLAGS_VIABLE (1U << 0)
#define VFIO_GROUP_FLAGS_CONTAINER_SET (1U << 1)

struct vfio_group_status {
	uint32_t argsz, flags;
};

/* Type 1: the container's page tables. Numbers as of the device's, told apart by the fd. `end` is inclusive. */

#define VFIO_IOMMU_GET_INFO _IO(VFIO_TYPE, VFIO_BASE + 12)
#define VFIO_IOMMU_MAP_DMA _IO(VFIO_TYPE, VFIO_BASE + 13)
#define VFIO_IOMMU_UNMAP_DMA _IO(VFIO_TYPE, VFIO_BASE + 14)
#define VFIO_IOMMU_DIRTY_PAGES _IO(VFIO_TYPE, VFIO_BASE + 17)

#define VFIO_IOMMU_INFO_PGSIZES (1U << 0)
#define VFIO_IOMMU_INFO_CAPS (1U << 1)

#define VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE 1
#define VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION 2
#define VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL 3

#define VFIO_DMA_MAP_FLAG_READ (1U << 0)
#define VFIO_DMA_MAP_FLAG_WRITE (1U << 1)
#define VFIO_DMA_MAP_FLAG_VADDR (1U << 2)

#define VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP (1U << 0)
#define VFIO_DMA_UNMAP_FLAG_ALL (1U << 1)
#define VFIO_DMA_UNMAP_FLAG_VADDR (1U << 2)

#define VFIO_IOMMU_DIRTY_PAGES_FLAG_START (1U << 0)
#define VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP (1U << 1)
#define VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP (1U << 2)

struct vfio_iommu_type1_info { /* iova_pgsizes: a bit for each supported page size */
	uint32_t argsz, flags;
	uint64_t iova_pgsizes;
	uint32_t cap_offset, pad;
};

struct vfio_iova_range {
	uint64_t start, end;
};

struct vfio_iommu_type1_info_cap_iova_range {
	struct vfio_info_cap_header header;
	uint32_t nr_iovas, reserved;
	struct vfio_iova_range iova_ranges[];
};

struct vfio_iommu_type1_info_cap_migration {
	struct vfio_info_cap_header header;
	uint32_t flags;
	uint64_t pgsize_bitmap, max_dirty_bitmap_size;
};

struct vfio_iommu_type1_info_dma_avail {
	struct vfio_info_cap_header header;
	uint32_t avail;
};

struct vfio_iommu_type1_dma_map {
	uint32_t argsz, flags;
	uint64_t vaddr, iova, size;
};

struct vfio_bitmap { /* a bit for each pgsize bytes; size is the bitmap's, in bytes */
	uint64_t pgsize, size, *data;
};

struct vfio_iommu_type1_dma_unmap { /* size comes back as the bytes unmapped */
	uint32_t argsz, flags;
	uint64_t iova, size;
	uint8_t data[];
};

struct vfio_iommu_type1_dirty_bitmap {
	uint32_t argsz, flags;
	uint8_t data[];
};

struct vfio_iommu_type1_dirty_bitmap_get {
	uint64_t iova, size;
	struct vfio_bitmap bitmap;
};

#endif
