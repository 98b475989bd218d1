/* SPDX-License-Identifier: MIT */
/*
 * The ABI of /dev/iommu as of Linux 7.3, declared by this project itself, so that it builds where the system's
 * kernel headers are older than the kernel it will run on.
 *
 * Two readers: the C compiler, and cffi (cffi_source.py drops the directives and turns each `#define NAME expression`
 * into "ask the compiler"). Keep to what both understand: fixed-width types, no attributes, no function-like macros,
 * one line a #define. The fields that the kernel aligns to 8 bytes lie on multiples of 8 anyway, so that a plain
 * uint64_t gives its layout on 32-bit x86 too.
 *
 * Structs start with their own size; the kernel takes a shorter one (an older caller) and a longer one whose tail is
 * zero. "Since" is the first release with the command; distributions backport, so ask the kernel rather than compare.
 */
#ifndef PYIOMMUFD_UAPI_IOMMUFD_H
#define PYIOMMUFD_UAPI_IOMMUFD_H

#include <stdint.h>
#include <linux/ioctl.h>

/* The kernel's own header would declare the same names: make a later #include of it empty, refuse an earlier one. */
#ifdef _IOMMUFD_H
#error "include pyiommufd/uapi/iommufd.h in place of <linux/iommufd.h>, not after it"
#endif
#define _IOMMUFD_H

/* Commands */

#define IOMMUFD_TYPE ';'

enum {
	IOMMUFD_CMD_BASE = 0x80,
	IOMMUFD_CMD_DESTROY = 0x80,                 /* since 6.2, as all to VFIO_IOAS */
	IOMMUFD_CMD_IOAS_ALLOC = 0x81,
	IOMMUFD_CMD_IOAS_ALLOW_IOVAS = 0x82,
	IOMMUFD_CMD_IOAS_COPY = 0x83,
	IOMMUFD_CMD_IOAS_IOVA_RANGES = 0x84,
	IOMMUFD_CMD_IOAS_MAP = 0x85,
	IOMMUFD_CMD_IOAS_UNMAP = 0x86,
	IOMMUFD_CMD_OPTION = 0x87,
	IOMMUFD_CMD_VFIO_IOAS = 0x88,
	IOMMUFD_CMD_HWPT_ALLOC = 0x89,              /* 6.6 or 6.7 */
	IOMMUFD_CMD_GET_HW_INFO = 0x8a,             /* 6.6 or 6.7 */
	IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING = 0x8b, /* 6.7 */
	IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP = 0x8c,   /* 6.7 */
	IOMMUFD_CMD_HWPT_INVALIDATE = 0x8d,         /* 6.8 */
	IOMMUFD_CMD_FAULT_QUEUE_ALLOC = 0x8e,       /* 6.11 */
	IOMMUFD_CMD_IOAS_MAP_FILE = 0x8f,           /* 6.13 */
	IOMMUFD_CMD_VIOMMU_ALLOC = 0x90,            /* 6.13 */
	IOMMUFD_CMD_VDEVICE_ALLOC = 0x91,           /* 6.13 */
	IOMMUFD_CMD_IOAS_CHANGE_PROCESS = 0x92,     /* 6.14 */
	IOMMUFD_CMD_VEVENTQ_ALLOC = 0x93,           /* 6.15 */
	IOMMUFD_CMD_HW_QUEUE_ALLOC = 0x94,          /* 6.17 */
	IOMMUFD_CMD_IOAS_NOIOMMU_GET_PA = 0x95,     /* 7.3 */
};

#define IOMMU_DESTROY _IO(IOMMUFD_TYPE, IOMMUFD_CMD_DESTROY)
#define IOMMU_IOAS_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_ALLOC)
#define IOMMU_IOAS_ALLOW_IOVAS _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_ALLOW_IOVAS)
#define IOMMU_IOAS_COPY _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_COPY)
#define IOMMU_IOAS_IOVA_RANGES _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_IOVA_RANGES)
#define IOMMU_IOAS_MAP _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_MAP)
#define IOMMU_IOAS_UNMAP _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_UNMAP)
#define IOMMU_OPTION _IO(IOMMUFD_TYPE, IOMMUFD_CMD_OPTION)
#define IOMMU_VFIO_IOAS _IO(IOMMUFD_TYPE, IOMMUFD_CMD_VFIO_IOAS)
#define IOMMU_HWPT_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_HWPT_ALLOC)
#define IOMMU_GET_HW_INFO _IO(IOMMUFD_TYPE, IOMMUFD_CMD_GET_HW_INFO)
#define IOMMU_HWPT_SET_DIRTY_TRACKING _IO(IOMMUFD_TYPE, IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING)
#define IOMMU_HWPT_GET_DIRTY_BITMAP _IO(IOMMUFD_TYPE, IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP)
#define IOMMU_HWPT_INVALIDATE _IO(IOMMUFD_TYPE, IOMMUFD_CMD_HWPT_INVALIDATE)
#define IOMMU_FAULT_QUEUE_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_FAULT_QUEUE_ALLOC)
#define IOMMU_IOAS_MAP_FILE _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_MAP_FILE)
#define IOMMU_VIOMMU_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_VIOMMU_ALLOC)
#define IOMMU_VDEVICE_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_VDEVICE_ALLOC)
#define IOMMU_IOAS_CHANGE_PROCESS _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_CHANGE_PROCESS)
#define IOMMU_VEVENTQ_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_VEVENTQ_ALLOC)
#define IOMMU_HW_QUEUE_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_HW_QUEUE_ALLOC)
#define IOMMU_IOAS_NOIOMMU_GET_PA _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_NOIOMMU_GET_PA)

/* Any object */

struct iommu_destroy {
	uint32_t size, id;
};

/* IOAS: the address space. `last` is inclusive; `allowed_iovas` points to `num_iovas` ranges. */

struct iommu_ioas_alloc {
	uint32_t size, flags, out_ioas_id;
};

struct iommu_iova_range {
	uint64_t start, last;
};

struct iommu_ioas_iova_ranges { /* EMSGSIZE: num_iovas has become the count to ask again with */
	uint32_t size, ioas_id, num_iovas, __reserved;
	uint64_t allowed_iovas, out_iova_alignment;
};

struct iommu_ioas_allow_iovas {
	uint32_t size, ioas_id, num_iovas, __reserved;
	uint64_t allowed_iovas;
};

/* Mappings: lengths in bytes; `iova` is input with FIXED_IOVA and output without. */

enum iommufd_ioas_map_flags {
	IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0,
	IOMMU_IOAS_MAP_WRITEABLE = 1 << 1,
	IOMMU_IOAS_MAP_READABLE = 1 << 2,
};

struct iommu_ioas_map {
	uint32_t size, flags, ioas_id, __reserved;
	uint64_t user_va, length, iova;
};

struct iommu_ioas_map_file { /* a memfd or a vfio dma-buf */
	uint32_t size, flags, ioas_id;
	int32_t fd;
	uint64_t start, length, iova;
};

struct iommu_ioas_copy {
	uint32_t size, flags, dst_ioas_id, src_ioas_id;
	uint64_t length, dst_iova, src_iova;
};

struct iommu_ioas_unmap { /* length comes back as the bytes unmapped */
	uint32_t size, ioas_id;
	uint64_t iova, length;
};

struct iommu_ioas_noiommu_get_pa { /* length comes back as the contiguous bytes at out_phys */
	uint32_t size, flags, ioas_id, __reserved;
	uint64_t iova, length, out_phys;
};

struct iommu_ioas_change_process { /* of the whole iommufd */
	uint32_t size, __reserved;
};

/* Options; object_id is 0 for the iommufd itself (RLIMIT_MODE) or an IOAS (HUGE_PAGES). */

enum iommufd_option {
	IOMMU_OPTION_RLIMIT_MODE = 0,
	IOMMU_OPTION_HUGE_PAGES = 1,
};

enum iommufd_option_ops {
	IOMMU_OPTION_OP_SET = 0,
	IOMMU_OPTION_OP_GET = 1,
};

struct iommu_option {
	uint32_t size, option_id;
	uint16_t op, __reserved;
	uint32_t object_id;
	uint64_t val64;
};

/* The IOAS that VFIO's container interface works on. */

enum iommufd_vfio_ioas_op {
	IOMMU_VFIO_IOAS_GET = 0,
	IOMMU_VFIO_IOAS_SET = 1,
	IOMMU_VFIO_IOAS_CLEAR = 2,
};

struct iommu_vfio_ioas {
	uint32_t size, ioas_id;
	uint16_t op, __reserved;
};

/* HWPT: the IOMMU's page table; `data_uptr` points to `data_len` bytes of what `data_type` names. */

enum iommufd_hwpt_alloc_flags {
	IOMMU_HWPT_ALLOC_NEST_PARENT = 1 << 0,
	IOMMU_HWPT_ALLOC_DIRTY_TRACKING = 1 << 1,
	IOMMU_HWPT_FAULT_ID_VALID = 1 << 2,
	IOMMU_HWPT_ALLOC_PASID = 1 << 3,
};

enum iommu_hwpt_data_type {
	IOMMU_HWPT_DATA_NONE = 0,
	IOMMU_HWPT_DATA_VTD_S1 = 1,
	IOMMU_HWPT_DATA_ARM_SMMUV3 = 2,
	IOMMU_HWPT_DATA_AMD_GUEST = 3,
};

enum iommu_hwpt_vtd_s1_flags {
	IOMMU_VTD_S1_SRE = 1 << 0,
	IOMMU_VTD_S1_EAFE = 1 << 1,
	IOMMU_VTD_S1_WPE = 1 << 2,
};

struct iommu_hwpt_vtd_s1 {
	uint64_t flags, pgtbl_addr;
	uint32_t addr_width, __reserved;
};

struct iommu_hwpt_arm_smmuv3 {
	uint64_t ste[2]; /* little-endian: the guest's stream table entry */
};

struct iommu_hwpt_amd_guest {
	uint64_t dte[4]; /* the guest's device table entry */
};

struct iommu_hwpt_alloc { /* pt_id: an IOAS, a nesting parent or a vIOMMU */
	uint32_t size, flags, dev_id, pt_id, out_hwpt_id, __reserved, data_type, data_len;
	uint64_t data_uptr;
	uint32_t fault_id, __reserved2;
};

/* What the IOMMU behind a device is and can; data_len comes back as the kernel's own length. */

enum iommu_hw_info_type {
	IOMMU_HW_INFO_TYPE_NONE = 0,
	IOMMU_HW_INFO_TYPE_DEFAULT = 0, /* asked for with INPUT_TYPE: whatever the driver has */
	IOMMU_HW_INFO_TYPE_INTEL_VTD = 1,
	IOMMU_HW_INFO_TYPE_ARM_SMMUV3 = 2,
	IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV = 3,
	IOMMU_HW_INFO_TYPE_AMD = 4,
};

enum iommufd_hw_info_flags {
	IOMMU_HW_INFO_FLAG_INPUT_TYPE = 1 << 0,
};

enum iommufd_hw_capabilities {
	IOMMU_HW_CAP_DIRTY_TRACKING = 1 << 0,
	IOMMU_HW_CAP_PCI_PASID_EXEC = 1 << 1,
	IOMMU_HW_CAP_PCI_PASID_PRIV = 1 << 2,
	IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED = 1 << 3,
};

struct iommu_hw_info { /* out_max_pasid_log2: 0 is no PASID at all */
	uint32_t size, flags, dev_id, data_len;
	uint64_t data_uptr;
	union {
		uint32_t in_data_type;
		uint32_t out_data_type;
	};
	uint8_t out_max_pasid_log2, __reserved[3];
	uint64_t out_capabilities;
};

enum iommu_hw_info_vtd_flags {
	IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 = 1 << 0,
};

struct iommu_hw_info_vtd { /* the registers CAP and ECAP */
	uint32_t flags, __reserved;
	uint64_t cap_reg, ecap_reg;
};

enum iommu_hw_info_arm_smmuv3_flags {
	IOMMU_HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI = 1 << 0,
};

struct iommu_hw_info_arm_smmuv3 { /* the registers IDR0 to IDR5, IIDR, AIDR */
	uint32_t flags, __reserved, idr[6], iidr, aidr;
};

struct iommu_hw_info_tegra241_cmdqv {
	uint32_t flags;
	uint8_t version, log2vcmdqs, log2vsids, __reserved;
};

struct iommu_hw_info_amd { /* the extended feature registers */
	uint64_t efr, efr2;
};

/* Dirty tracking; `data` points to a bitmap, a bit for each page_size bytes. */

enum iommufd_hwpt_set_dirty_tracking_flags {
	IOMMU_HWPT_DIRTY_TRACKING_ENABLE = 1,
};

struct iommu_hwpt_set_dirty_tracking {
	uint32_t size, flags, hwpt_id, __reserved;
};

enum iommufd_hwpt_get_dirty_bitmap_flags {
	IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR = 1,
};

struct iommu_hwpt_get_dirty_bitmap {
	uint32_t size, hwpt_id, flags, __reserved;
	uint64_t iova, length, page_size, data;
};

/* Invalidation of nested translations; entry_num comes back as the entries done, also on failure. */

enum iommu_hwpt_invalidate_data_type {
	IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 = 0,
	IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 = 1,
};

enum iommu_hwpt_vtd_s1_invalidate_flags {
	IOMMU_VTD_INV_FLAGS_LEAF = 1 << 0,
};

struct iommu_hwpt_vtd_s1_invalidate { /* npages of all ones: everything */
	uint64_t addr, npages;
	uint32_t flags, __reserved;
};

struct iommu_viommu_arm_smmuv3_invalidate {
	uint64_t cmd[2]; /* little-endian: a command queue entry */
};

struct iommu_hwpt_invalidate { /* hwpt_id: a nested HWPT or a vIOMMU */
	uint32_t size, hwpt_id;
	uint64_t data_uptr;
	uint32_t data_type, entry_len, entry_num, __reserved;
};

/* Page faults: read pgfault from the fault fd, write page_response to it. */

struct iommu_fault_alloc {
	uint32_t size, flags, out_fault_id, out_fault_fd;
};

enum iommu_hwpt_pgfault_flags {
	IOMMU_PGFAULT_FLAGS_PASID_VALID = 1 << 0,
	IOMMU_PGFAULT_FLAGS_LAST_PAGE = 1 << 1,
};

enum iommu_hwpt_pgfault_perm {
	IOMMU_PGFAULT_PERM_READ = 1 << 0,
	IOMMU_PGFAULT_PERM_WRITE = 1 << 1,
	IOMMU_PGFAULT_PERM_EXEC = 1 << 2,
	IOMMU_PGFAULT_PERM_PRIV = 1 << 3,
};

struct iommu_hwpt_pgfault {
	uint32_t flags, dev_id, pasid, grpid, perm, __reserved;
	uint64_t addr;
	uint32_t length, cookie;
};

enum iommufd_page_response_code {
	IOMMUFD_PAGE_RESP_SUCCESS = 0,
	IOMMUFD_PAGE_RESP_INVALID = 1,
};

struct iommu_hwpt_page_response {
	uint32_t cookie, code;
};

/* vIOMMU: a slice of an IOMMU for one VM, its virtual devices, events and hardware queues. */

enum iommu_viommu_type {
	IOMMU_VIOMMU_TYPE_DEFAULT = 0,
	IOMMU_VIOMMU_TYPE_ARM_SMMUV3 = 1,
	IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV = 2,
};

struct iommu_viommu_tegra241_cmdqv { /* arguments for mmap of the iommufd */
	uint64_t out_vintf_mmap_offset, out_vintf_mmap_length;
};

struct iommu_viommu_alloc { /* hwpt_id: a nesting parent */
	uint32_t size, flags, type, dev_id, hwpt_id, out_viommu_id, data_len, __reserved;
	uint64_t data_uptr;
};

struct iommu_vdevice_alloc { /* virt_id: what the guest's IOMMU driver calls the device */
	uint32_t size, viommu_id, dev_id, out_vdevice_id;
	uint64_t virt_id;
};

enum iommu_veventq_flag {
	IOMMU_VEVENTQ_FLAG_LOST_EVENTS = 1U << 0,
};

struct iommufd_vevent_header { /* the sequence wraps after INT_MAX; with LOST_EVENTS no event follows */
	uint32_t flags, sequence;
};

enum iommu_veventq_type {
	IOMMU_VEVENTQ_TYPE_DEFAULT = 0,
	IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 = 1,
	IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV = 2,
};

struct iommu_vevent_arm_smmuv3 {
	uint64_t evt[4]; /* little-endian: an event record */
};

struct iommu_vevent_tegra241_cmdqv {
	uint64_t lvcmdq_err_map[2]; /* little-endian: a bit for each queue in error */
};

struct iommu_veventq_alloc {
	uint32_t size, flags, viommu_id, type, veventq_depth, out_veventq_id, out_veventq_fd, __reserved;
};

enum iommu_hw_queue_type {
	IOMMU_HW_QUEUE_TYPE_DEFAULT = 0,
	IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV = 1,
};

struct iommu_hw_queue_alloc { /* the queue's memory, as the guest addresses it */
	uint32_t size, flags, viommu_id, type, index, out_hw_queue_id;
	uint64_t nesting_parent_iova, length;
};

#endif
