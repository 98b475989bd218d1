/*
 * C entry points of pyiommufd._uapi, in the subset of C that cffi's cdef reads.
 *
 * What a call has done is written down before it returns, in memory that a Python object owns: Python may run a signal
 * handler, and raise from it, between the return of a call and the use of its result. A call that fails returns the
 * negative errno: the handler's own calls would write over what is kept elsewhere.
 */

int pyiommufd_raw_ioctl(int fd, unsigned long request, void *argument);

/*
 * For tests alone: have the number-th allocation fail, from 1 on, that the kernel makes for this thread's calls below and
 * in window.h: opens, ioctls, reads, writes, mmaps; see injection.c. EALREADY: one is to fail already.
 */
int pyiommufd_injection_begin(uint32_t number);
/* Not any more. How many allocations were left to it; 0: it has failed. In a forked child: close the parent's file. */
int64_t pyiommufd_injection_end(void);

/* An fd and its owner. Every call of a file without an fd fails with EBADF. */
struct pyiommufd_file {
    int fd;             /* -1: none */
    int inherited;      /* in a forked child: the copy of the parent's, to be closed and nothing else */
    int wake;           /* an eventfd that ends pyiommufd_file_wait when the file is closed; -1: nobody has waited */
    int closing;        /* that of a close which waits for the calls under way; or -1 */
    unsigned int users; /* calls under way */
};
int pyiommufd_file_open(struct pyiommufd_file *file, const char *path, int flags);
int pyiommufd_file_eventfd(struct pyiommufd_file *file);
int pyiommufd_file_memfd(struct pyiommufd_file *file, const char *name, unsigned int flags, int64_t length);
int pyiommufd_file_duplicate(struct pyiommufd_file *file, struct pyiommufd_file *other);
int pyiommufd_file_close(struct pyiommufd_file *file);
void pyiommufd_file_forked(struct pyiommufd_file *file);
/* Whether two fds are of one open file; 0 also where that cannot be asked. */
int pyiommufd_file_same(struct pyiommufd_file *file, struct pyiommufd_file *other);
/* As poll: until it is readable, or closed. */
int pyiommufd_file_wait(struct pyiommufd_file *file, int milliseconds);
/*
 * An epoll instance, readable while the file is, and from its close on. Unlike a duplicate it does not keep the file open:
 * the kernel destroys no queue whose file is. end: a copy of what ends pyiommufd_file_wait, to be kept as long.
 */
int pyiommufd_file_watch(struct pyiommufd_file *file, struct pyiommufd_file *watch, struct pyiommufd_file *end);
/* Have its fd be readable no more until something new comes (EPOLLET), or the file is closed. */
void pyiommufd_file_rest(int watch);
/* As poll, without waiting. */
int pyiommufd_file_readable(struct pyiommufd_file *file);
/* As read, or pread where the offset is not negative; and so for writing. done: bytes in memory now; or NULL. */
int64_t pyiommufd_file_read(struct pyiommufd_file *file, void *memory, uint64_t length, int64_t offset, uint64_t *done);
int64_t pyiommufd_file_write(struct pyiommufd_file *file, const void *memory, uint64_t length, int64_t offset);
/* The count of an eventfd that does not block, set back to 0; UINT64_MAX, which none can have: it cannot be read. */
uint64_t pyiommufd_file_take(struct pyiommufd_file *file);
/* Set or clear bits of 2 bytes, little-endian, by a pread and a pwrite. */
int pyiommufd_file_change16(struct pyiommufd_file *file, int64_t offset, uint16_t bits, int on);
int pyiommufd_ioctl(struct pyiommufd_file *file, unsigned long request, void *argument);

/* What the kernel keeps behind an iommufd by an id. */
struct pyiommufd_object {
    struct pyiommufd_file *file; /* the iommufd */
    uint32_t id;
    /* 0: does not exist, 1: exists, 2: in exclusive use by one call (see object.c) */
    unsigned int state;
    unsigned int users;   /* calls under way */
    unsigned int changes; /* of an address space: how often something was mapped, or an unmap was tried */
    unsigned int wanted;  /* set by a call that got EAGAIN too often: others yield to it for some ms */
};
/* A place in a command where the id of an object is wanted. */
struct pyiommufd_id {
    struct pyiommufd_object *object;
    uint64_t at;
};
/*
 * Have the kernel make one: the command is written over, with the ids of what it is made for, then that of the object;
 * and, where a queue is given, its fd.
 */
int pyiommufd_make(struct pyiommufd_object *object, unsigned long request, void *command, uint64_t id_at,
                   const struct pyiommufd_id *uses, uint64_t count, struct pyiommufd_file *queue, uint64_t fd_at);
/* An ioctl of the iommufd about one of its objects, whose id is written to the command. */
int pyiommufd_object_ioctl(struct pyiommufd_object *object, unsigned long request, void *command, uint64_t id_at);
/* Nothing, and 0, where it is not there. The iommufd's lock is held. */
int pyiommufd_destroy(struct pyiommufd_object *object);
/* As destroy, but that the kernel keeps it: later calls fail with EBADF. */
void pyiommufd_abandon(struct pyiommufd_object *object);

/* One mapping of the kernel's. Single ones are mapped and unmapped by mapping_type.c. */
struct pyiommufd_piece {
    uint64_t offset; /* in the memory or the range that it is of */
    uint64_t length;
    uint64_t iova;
    uint64_t state; /* as that of an object */
    struct pyiommufd_object *ioas; /* where, once it has been mapped */
};
/*
 * By one request; the pieces, with offset and length, are those that the source has there. EAGAIN: something was mapped
 * or unmapped there since it had that many changes.
 */
int pyiommufd_ioas_copy(struct pyiommufd_object *ioas, struct pyiommufd_piece *pieces, uint64_t count, uint32_t flags,
                        struct pyiommufd_object *source, uint64_t src_iova, uint64_t length, uint64_t dst_iova,
                        unsigned int changes);
/*
 * Many pieces of one memory by one call, with offset, length and iova; an iova of all ones lets the kernel choose. The
 * result is 1 where address, length or iova is not on page boundaries, or the length 0. done: how many were mapped
 * before one failed.
 */
int pyiommufd_ioas_map_many(struct pyiommufd_object *ioas, struct pyiommufd_piece *pieces, uint64_t count,
                            uint32_t flags, const void *memory, uint64_t *done);
/* Each of them that is mapped, of one address space, until one fails. */
int pyiommufd_ioas_unmap_many(struct pyiommufd_piece *pieces, uint64_t count);
/* Whether one of them is mapped. */
int pyiommufd_any_mapped(const struct pyiommufd_piece *pieces, uint64_t count);
/*
 * All within a range, by one request; the pieces are all that it may touch. EAGAIN: something was mapped or unmapped
 * since the address space had that many changes.
 */
int pyiommufd_ioas_unmap_range(struct pyiommufd_object *ioas, uint64_t iova, uint64_t length,
                               struct pyiommufd_piece **pieces, uint64_t count, unsigned int changes,
                               uint64_t *unmapped);
/* What is left mapped in an abandoned one. */
int pyiommufd_ioas_unmap_left(struct pyiommufd_object *ioas, struct pyiommufd_piece *piece);
/* Whether something in a range is not mapped, by whatever process: 1, and the first such address; or 0. */
int pyiommufd_ioas_first_hole(struct pyiommufd_object *ioas, uint64_t iova, uint64_t length, uint64_t *hole);
/* Bytes of a range that these are mapped in; without those that the kernel is working on. */
uint64_t pyiommufd_mapped_within(const struct pyiommufd_piece *pieces, uint64_t count, uint64_t iova, uint64_t length);
/*
 * Runs of set bits from `from` on, in so many words of 64: the first and the last bit of each. The result is how many,
 * `room` at most.
 */
uint64_t pyiommufd_runs(const uint64_t *words, uint64_t count, uint64_t from, uint64_t *runs, uint64_t room);
/*
 * Whether the device can have a page table of what an address space maps; with a length, of that range alone, copied to
 * an iova. The page table, and the copy, are destroyed again. The iommufd's lock is held.
 */
int pyiommufd_try_page_table(struct pyiommufd_object *device, struct pyiommufd_object *ioas, uint64_t iova,
                             uint64_t length, uint64_t dst_iova);

/*
 * /dev/vfio/devices/vfioX. A bind makes the device and gives the fd to its owner. token: 16 bytes or NULL; pasid:
 * negative for none; group_on: the page table of the device's group.
 */
int pyiommufd_bind(struct pyiommufd_file *cdev, struct pyiommufd_object *device, struct pyiommufd_file *owner,
                   const void *token);
int pyiommufd_attach(struct pyiommufd_file *cdev, struct pyiommufd_object *table, int64_t pasid, uint32_t *group_on,
                     int *attached);
int pyiommufd_detach(struct pyiommufd_file *cdev, int64_t pasid, int *attached);
/* width: also the flag of that size; eventfd: NULL for no more. on: whether the kernel writes. */
int pyiommufd_ioeventfd(struct pyiommufd_file *cdev, uint64_t offset, uint32_t width, uint64_t value,
                        struct pyiommufd_file *eventfd, int *on);
/* The eventfds are written into the command: NULL for none. */
int pyiommufd_set_irqs(struct pyiommufd_file *cdev, struct vfio_irq_set *command, struct pyiommufd_file **eventfds,
                       uint64_t count);
/*
 * VFIO_DEVICE_FEATURE, with a file in its data at fd_at: the fd of one that is given is written there; one that the
 * kernel makes is what comes back there or, with a negative fd_at, as the result.
 */
int pyiommufd_feature(struct pyiommufd_file *cdev, struct vfio_device_feature *command, int64_t fd_at,
                      struct pyiommufd_file *given, struct pyiommufd_file *made);
/* VFIO_DEVICE_GET_GFX_DMABUF: made becomes the owner of the fd. */
int pyiommufd_gfx_dma_buf(struct pyiommufd_file *cdev, uint32_t id, struct pyiommufd_file *made);
