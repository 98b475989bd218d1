/*
 * C entry points of pyiommufd._uapi, in the subset of C that cffi's cdef reads.
 *
 * Results are plain numbers, so that a call from Python needs no struct object and no cast. A call that
 * fails returns -1 (or, where the result is unsigned, all ones) and leaves the reason in errno; those that
 * can return all ones as a value set errno to 0 when they succeed.
 */

int pyiommufd_ioctl(int fd, unsigned long request, void *argument);

/* /dev/iommu. Every one issues exactly one ioctl. */
int pyiommufd_destroy(int fd, uint32_t id);
int64_t pyiommufd_ioas_alloc(int fd);
uint64_t pyiommufd_ioas_map(int fd, uint32_t ioas_id, uint32_t flags, const void *user_va, uint64_t length,
                            uint64_t iova);
uint64_t pyiommufd_ioas_unmap(int fd, uint32_t ioas_id, uint64_t iova, uint64_t length);

/* As pyiommufd_ioas_map, of a file. */
uint64_t pyiommufd_ioas_map_file(int fd, uint32_t ioas_id, uint32_t flags, int file, uint64_t start, uint64_t length,
                                 uint64_t iova);

/* As pyiommufd_ioas_map; the iova of the copy. */
uint64_t pyiommufd_ioas_copy(int fd, uint32_t dst_ioas_id, uint32_t flags, uint32_t src_ioas_id, uint64_t src_iova,
                             uint64_t length, uint64_t dst_iova);

/*
 * The iova that this thread's last call mapped (pyiommufd_ioas_map and its relatives) or unmapped
 * (pyiommufd_ioas_unmap) if that was in this address space; once, and all ones when asked again.
 */
uint64_t pyiommufd_ioas_last_map(int fd, uint32_t ioas_id);
uint64_t pyiommufd_ioas_last_unmap(int fd, uint32_t ioas_id);

/*
 * Many pieces of one memory by one call. pieces: count times (offset, length, iova), then one number more. An iova
 * of all ones lets the kernel choose, and is overwritten by what it chose; the number at the end becomes that of
 * the pieces that were mapped before one failed, and is the result.
 */
uint64_t pyiommufd_ioas_map_many(int fd, uint32_t ioas_id, uint32_t flags, const void *memory, uint64_t *pieces,
                                 uint64_t count);
/* The same numbers, without the one at the end. The result is how many were unmapped before one failed. */
uint64_t pyiommufd_ioas_unmap_many(int fd, uint32_t ioas_id, const uint64_t *pieces, uint64_t count);

/* Whether something in a range is not mapped, by whatever process: 1, and the first such address; or 0. */
int pyiommufd_ioas_first_hole(int fd, uint32_t ioas_id, uint64_t iova, uint64_t length, uint64_t *hole);

/* /dev/vfio/devices/vfioX. token: 16 bytes or NULL; pasid: negative for none. */
int64_t pyiommufd_bind(int fd, int iommufd, const void *token);
int64_t pyiommufd_attach(int fd, uint32_t pt_id, int64_t pasid);
int pyiommufd_detach(int fd, int64_t pasid);

/* A mapped part of a device region; see entry.c for the guard against SIGBUS. */
struct pyiommufd_window;
struct pyiommufd_window *pyiommufd_window_new(void);
int pyiommufd_window_map(struct pyiommufd_window *window, int fd, uint64_t offset, uint64_t length, int readable,
                         int writeable);
int pyiommufd_window_unmap(struct pyiommufd_window *window);
void pyiommufd_window_free(struct pyiommufd_window *window);
uint64_t pyiommufd_window_read(struct pyiommufd_window *window, uint64_t offset, unsigned int width);
int pyiommufd_window_write(struct pyiommufd_window *window, uint64_t offset, unsigned int width,
                           uint64_t value);
