/* C code behind entry.h. Included after the ABI declarations by the source that build_cffi.py makes. */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LOAD(at) __atomic_load_n(at, __ATOMIC_SEQ_CST)
#define STORE(at, value) __atomic_store_n(at, value, __ATOMIC_SEQ_CST)
#define SWAP(at, value) __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST)
#define ADD(at, value) __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST)

/* Between two looks at what another thread is about to end: it may be a system call that takes long. */
static void look_again(unsigned int *looks)
{
    static const struct timespec pause = { .tv_nsec = 100000 };

    if (++*looks < 64)
        sched_yield();
    else
        nanosleep(&pause, NULL);
}

/*
 * Files.
 *
 * close() waits for the calls under way, and every later one finds that there is no fd: so none of them can reach
 * what gets the same number next.
 */
static int hold(struct pyiommufd_file *file)
{
    int fd;

    ADD(&file->users, 1);
    fd = LOAD(&file->fd);
    if (fd < 0) {
        ADD(&file->users, -1);
        errno = EBADF;
    }
    return fd;
}

static void let_go(struct pyiommufd_file *file)
{
    ADD(&file->users, -1);
}

static int own(struct pyiommufd_file *file, int fd)
{
    if (fd < 0)
        return -1;
    STORE(&file->fd, fd);
    return 0;
}

int pyiommufd_file_open(struct pyiommufd_file *file, const char *path, int flags)
{
    return own(file, open(path, flags | O_CLOEXEC));
}

int pyiommufd_file_eventfd(struct pyiommufd_file *file)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    file->wake = fd;
    return own(file, fd);
}

int pyiommufd_file_memfd(struct pyiommufd_file *file, const char *name, unsigned int flags, int64_t length)
{
    int fd = (int)syscall(SYS_memfd_create, name, flags);

    if (own(file, fd))
        return -1;
    return ftruncate(fd, length);
}

int pyiommufd_file_duplicate(struct pyiommufd_file *file, struct pyiommufd_file *other)
{
    int fd = hold(other), result;

    if (fd < 0)
        return -1;
    result = own(file, fcntl(fd, F_DUPFD_CLOEXEC, 0));
    let_go(other);
    return result;
}

int pyiommufd_file_close(struct pyiommufd_file *file)
{
    int fd = SWAP(&file->fd, -1), wake = SWAP(&file->wake, -1), inherited = SWAP(&file->inherited, -1);
    unsigned int looks = 0;
    const uint64_t one = 1;

    if (inherited >= 0)
        fd = inherited;
    else if (wake >= 0 && write(wake, &one, sizeof(one)) < 0)
        errno = 0; /* it is full: those who wait are awake */
    while (LOAD(&file->users))
        look_again(&looks);
    if (wake >= 0 && wake != fd)
        close(wake);
    return fd < 0 ? 0 : close(fd);
}

void pyiommufd_file_free(struct pyiommufd_file *file)
{
    pyiommufd_file_close(file);
}

/* What other threads had under way is not under way here. */
void pyiommufd_file_forked(struct pyiommufd_file *file)
{
    if (file->fd >= 0)
        file->inherited = file->fd;
    file->fd = -1;
    file->users = 0;
}

int pyiommufd_file_same(struct pyiommufd_file *file, struct pyiommufd_file *other)
{
    const int one = hold(file), two = hold(other);
    int result = 0;

    if (one >= 0 && two >= 0) {
        /* F_DUPFD_QUERY (linux/fcntl.h, since 6.10): 0 or 1. */
        result = fcntl(one, 1024 + 3, two);
        if (result < 0)
            /* 0: KCMP_FILE, of linux/kcmp.h; not in every kernel, nor in every container. */
            result = syscall(SYS_kcmp, getpid(), getpid(), 0, (unsigned long)one, (unsigned long)two) == 0;
    }
    if (one >= 0)
        let_go(file);
    if (two >= 0)
        let_go(other);
    return result;
}

int pyiommufd_file_wait(struct pyiommufd_file *file, int milliseconds)
{
    struct pollfd waiting[2] = { { .fd = hold(file), .events = POLLIN }, { .fd = LOAD(&file->wake), .events = POLLIN } };
    int result;

    if (waiting[0].fd < 0)
        return -1;
    result = poll(waiting, 2, milliseconds);
    let_go(file);
    return result;
}

int64_t pyiommufd_file_read(struct pyiommufd_file *file, void *memory, uint64_t length, int64_t offset)
{
    int fd = hold(file);
    int64_t result;

    if (fd < 0)
        return -1;
    result = offset < 0 ? read(fd, memory, length) : pread(fd, memory, length, offset);
    let_go(file);
    return result;
}

int64_t pyiommufd_file_write(struct pyiommufd_file *file, const void *memory, uint64_t length, int64_t offset)
{
    int fd = hold(file);
    int64_t result;

    if (fd < 0)
        return -1;
    result = offset < 0 ? write(fd, memory, length) : pwrite(fd, memory, length, offset);
    let_go(file);
    return result;
}

int pyiommufd_ioctl(struct pyiommufd_file *file, unsigned long request, void *argument)
{
    int fd = hold(file), result;

    if (fd < 0)
        return -1;
    result = ioctl(fd, request, argument);
    let_go(file);
    return result;
}

int pyiommufd_raw_ioctl(int fd, unsigned long request, void *argument)
{
    return ioctl(fd, request, argument);
}

/*
 * Objects.
 *
 * What the kernel has made or destroyed is written down by the same call, as Python may run a signal handler, and
 * raise from it, between the return of a call and the use of its result.
 */
enum { GONE, LIVE, ENDING };

/* Its fd, for a call that must not reach what gets its id next: destroy waits for it. */
static int use(struct pyiommufd_object *object)
{
    unsigned int looks = 0, state;
    int fd;

    for (;;) {
        ADD(&object->users, 1);
        state = LOAD(&object->state);
        if (state == LIVE)
            break;
        ADD(&object->users, -1);
        if (state == GONE) {
            errno = EBADF;
            return -1;
        }
        look_again(&looks);
    }
    fd = hold(object->file);
    if (fd < 0)
        ADD(&object->users, -1);
    return fd;
}

static void used(struct pyiommufd_object *object)
{
    let_go(object->file);
    ADD(&object->users, -1);
}

int pyiommufd_make(struct pyiommufd_object *object, unsigned long request, void *command, uint64_t id_at,
                   struct pyiommufd_file *queue, uint64_t fd_at)
{
    int fd = hold(object->file), result;

    if (fd < 0)
        return -1;
    /* First, so that nothing is left to fail once the kernel has made it. */
    if (queue && (queue->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) {
        let_go(object->file);
        return -1;
    }
    result = ioctl(fd, request, command);
    if (result >= 0) {
        memcpy(&object->id, (char *)command + id_at, sizeof(object->id));
        STORE(&object->state, LIVE);
        if (queue) {
            memcpy(&fd, (char *)command + fd_at, sizeof(fd));
            own(queue, fd);
        }
    }
    let_go(object->file);
    return result;
}

static int destroy(int fd, uint32_t id)
{
    struct iommu_destroy command = { .size = sizeof(command), .id = id };

    return ioctl(fd, IOMMU_DESTROY, &command);
}

/* One at a time for each iommufd: a copy uses two objects, and each might wait for the end of the other. */
int pyiommufd_destroy(struct pyiommufd_object *object)
{
    unsigned int live = LIVE, looks = 0;
    int fd, result = -1;

    if (!__atomic_compare_exchange_n(&object->state, &live, ENDING, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return 0;
    while (LOAD(&object->users))
        look_again(&looks);
    fd = hold(object->file);
    if (fd >= 0) {
        result = destroy(fd, object->id);
        let_go(object->file);
    }
    STORE(&object->state, result ? LIVE : GONE);
    return result;
}

static int64_t ioas_alloc(int fd)
{
    struct iommu_ioas_alloc command = { .size = sizeof(command) };

    return ioctl(fd, IOMMU_IOAS_ALLOC, &command) ? -1 : (int64_t)command.out_ioas_id;
}

/*
 * Mappings.
 *
 * Each piece is claimed before it is unmapped: two threads that unmap it do so once, and the one that comes second
 * waits until it is gone.
 */
static int claim(struct pyiommufd_piece *piece)
{
    unsigned int looks = 0;
    uint64_t state;

    for (;;) {
        state = LIVE;
        if (__atomic_compare_exchange_n(&piece->state, &state, ENDING, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return 1;
        if (state == GONE)
            return 0;
        look_again(&looks);
    }
}

static void mapped(struct pyiommufd_piece *piece, struct pyiommufd_object *ioas, uint64_t length, uint64_t iova)
{
    piece->ioas = ioas;
    piece->length = length;
    piece->iova = iova;
    STORE(&piece->state, LIVE);
}

static int map(int fd, struct pyiommufd_object *ioas, struct pyiommufd_piece *piece, uint32_t flags,
               const void *user_va, uint64_t length, uint64_t iova)
{
    /*
     * The kernel accepts a piece of a page as long as no device is attached, and fails the later attach for
     * it. Refused here, where the address is known without an object for it; errno 0 tells it from a refusal
     * by the kernel.
     */
    const uint64_t in_page = (uint64_t)sysconf(_SC_PAGESIZE) - 1;
    struct iommu_ioas_map command = {
        .size = sizeof(command),
        .flags = flags,
        .ioas_id = ioas->id,
        .user_va = (uintptr_t)user_va,
        .length = length,
        .iova = iova,
    };

    if (((uintptr_t)user_va | length | iova) & in_page || !length) {
        errno = 0;
        return -1;
    }
    if (ioctl(fd, IOMMU_IOAS_MAP, &command))
        return -1;
    mapped(piece, ioas, length, command.iova);
    return 0;
}

int pyiommufd_ioas_map(struct pyiommufd_object *ioas, struct pyiommufd_piece *piece, uint32_t flags,
                       const void *user_va, uint64_t length, uint64_t iova)
{
    int fd = use(ioas), result;

    if (fd < 0)
        return -1;
    result = map(fd, ioas, piece, flags, user_va, length, iova);
    used(ioas);
    return result;
}

int pyiommufd_ioas_map_file(struct pyiommufd_object *ioas, struct pyiommufd_piece *piece, uint32_t flags, int file,
                            uint64_t start, uint64_t length, uint64_t iova)
{
    struct iommu_ioas_map_file command = {
        .size = sizeof(command),
        .flags = flags,
        .ioas_id = ioas->id,
        .fd = file,
        .start = start,
        .length = length,
        .iova = iova,
    };
    int fd = use(ioas), result;

    if (fd < 0)
        return -1;
    result = ioctl(fd, IOMMU_IOAS_MAP_FILE, &command);
    if (!result)
        mapped(piece, ioas, length, command.iova);
    used(ioas);
    return result;
}

static int copy(int fd, uint32_t dst_ioas_id, uint32_t flags, uint32_t src_ioas_id, uint64_t src_iova,
                uint64_t length, uint64_t *dst_iova)
{
    struct iommu_ioas_copy command = {
        .size = sizeof(command),
        .flags = flags,
        .dst_ioas_id = dst_ioas_id,
        .src_ioas_id = src_ioas_id,
        .length = length,
        .dst_iova = *dst_iova,
        .src_iova = src_iova,
    };

    if (ioctl(fd, IOMMU_IOAS_COPY, &command))
        return -1;
    *dst_iova = command.dst_iova;
    return 0;
}

int pyiommufd_ioas_copy(struct pyiommufd_object *ioas, struct pyiommufd_piece *pieces, uint64_t count, uint32_t flags,
                        struct pyiommufd_object *source, uint64_t src_iova, uint64_t length, uint64_t dst_iova)
{
    int fd = use(ioas), result = -1;
    uint64_t at;

    if (fd < 0)
        return -1;
    if (use(source) >= 0) {
        result = copy(fd, ioas->id, flags, source->id, src_iova, length, &dst_iova);
        for (at = 0; !result && at < count; at++)
            mapped(&pieces[at], ioas, pieces[at].length, dst_iova + pieces[at].offset);
        used(source);
    }
    used(ioas);
    return result;
}

uint64_t pyiommufd_ioas_map_many(struct pyiommufd_object *ioas, struct pyiommufd_piece *pieces, uint64_t count,
                                 uint32_t flags, const void *memory)
{
    int fd = use(ioas);
    uint64_t done;

    if (fd < 0)
        return 0;
    for (done = 0; done < count; done++) {
        struct pyiommufd_piece *piece = &pieces[done];
        int fixed = piece->iova != UINT64_MAX;

        if (map(fd, ioas, piece, fixed ? flags | IOMMU_IOAS_MAP_FIXED_IOVA : flags,
                (const char *)memory + piece->offset, piece->length, fixed ? piece->iova : 0))
            break;
    }
    used(ioas);
    return done;
}

static int unmap(int fd, uint32_t ioas_id, uint64_t iova, uint64_t *length)
{
    struct iommu_ioas_unmap command = {
        .size = sizeof(command),
        .ioas_id = ioas_id,
        .iova = iova,
        .length = *length,
    };

    if (ioctl(fd, IOMMU_IOAS_UNMAP, &command))
        return -1;
    *length = command.length;
    return 0;
}

int pyiommufd_ioas_unmap(struct pyiommufd_piece *piece)
{
    uint64_t length = piece->length;
    int fd, result;

    if (LOAD(&piece->state) == GONE)
        return 0;
    fd = use(piece->ioas);
    if (fd < 0)
        return -1;
    result = 0;
    if (claim(piece)) {
        /* ENOENT: a process that shares this iommufd has unmapped it; it is gone, as was wanted. */
        if (unmap(fd, piece->ioas->id, piece->iova, &length) && errno != ENOENT)
            result = -1;
        STORE(&piece->state, result ? LIVE : GONE);
    }
    used(piece->ioas);
    return result;
}

uint64_t pyiommufd_ioas_unmap_many(struct pyiommufd_piece *pieces, uint64_t count)
{
    uint64_t done;

    for (done = 0; done < count; done++)
        if (pyiommufd_ioas_unmap(&pieces[done]))
            break;
    return done;
}

/* By their place in memory: an order in which several threads can claim pieces without waiting in a circle. */
static int in_memory(const void *one, const void *other)
{
    const uintptr_t a = (uintptr_t)*(struct pyiommufd_piece *const *)one;
    const uintptr_t b = (uintptr_t)*(struct pyiommufd_piece *const *)other;

    return (a > b) - (a < b);
}

int pyiommufd_ioas_unmap_range(struct pyiommufd_object *ioas, uint64_t iova, uint64_t length,
                               struct pyiommufd_piece **pieces, uint64_t count, uint64_t *unmapped)
{
    int fd = use(ioas), result;
    /* The kernel takes the longest range for the whole space, whose last address it does not include. */
    const uint64_t last = length == UINT64_MAX ? UINT64_MAX : iova + length - 1;
    uint64_t at, cut = UINT64_MAX;

    if (fd < 0)
        return -1;
    qsort(pieces, count, sizeof(*pieces), in_memory);
    for (at = 0; at < count; at++) {
        struct pyiommufd_piece *piece = pieces[at];
        const uint64_t end = piece->iova + piece->length - 1;

        if (piece->iova >= iova && end <= last) {
            if (!claim(piece))
                pieces[at] = NULL;
            continue;
        }
        /* It goes upwards and stops at the first mapping that the range cuts (Linux 7.3, iopt_unmap_iova_range). */
        if (LOAD(&piece->state) != GONE && piece->iova <= last && end >= iova && piece->iova < cut)
            cut = piece->iova;
        pieces[at] = NULL;
    }
    *unmapped = length;
    result = unmap(fd, ioas->id, iova, unmapped);
    for (at = 0; at < count; at++)
        if (pieces[at])
            STORE(&pieces[at]->state, !result || (cut != UINT64_MAX && pieces[at]->iova < cut) ? GONE : LIVE);
    used(ioas);
    return result;
}

static int copies(int fd, uint32_t dst_ioas_id, uint32_t src_ioas_id, uint64_t iova, uint64_t length)
{
    uint64_t dst_iova = iova;

    /* Readable is what a copy of anything may be. */
    return copy(fd, dst_ioas_id, IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE, src_ioas_id, iova, length,
                &dst_iova) == 0;
}

/*
 * No request asks what is mapped, but a copy is refused for a hole in its source. The copy is to an address space
 * without devices, where it pins and accounts nothing.
 */
int pyiommufd_ioas_first_hole(struct pyiommufd_file *iommufd, uint32_t ioas_id, uint64_t iova, uint64_t length,
                              uint64_t *hole)
{
    int fd = hold(iommufd), code = 0;
    int64_t scratch;

    if (fd < 0)
        return -1;
    scratch = ioas_alloc(fd);
    if (scratch < 0)
        code = errno;
    else if (!copies(fd, scratch, ioas_id, iova, length))
        code = errno;
    /* EOVERFLOW: the range is too long for a copy, and for a mapping. */
    if (code == ENOENT || code == EOVERFLOW) {
        /* Up to iova all is mapped, and copied; within the length from there on something is not. */
        while (length > 1) {
            uint64_t half = length / 2;

            if (copies(fd, scratch, ioas_id, iova, half)) {
                iova += half;
                length -= half;
            } else {
                length = half;
            }
        }
        *hole = iova;
    }
    if (scratch >= 0)
        destroy(fd, scratch);
    let_go(iommufd);
    if (code == ENOENT || code == EOVERFLOW)
        return 1;
    errno = code;
    return code ? -1 : 0;
}

static int try_page_table(int fd, uint32_t device_id, uint32_t ioas_id)
{
    struct iommu_hwpt_alloc command = { .size = sizeof(command), .dev_id = device_id, .pt_id = ioas_id };

    if (ioctl(fd, IOMMU_HWPT_ALLOC, &command))
        return errno;
    destroy(fd, command.out_hwpt_id);
    return 0;
}

int pyiommufd_try_page_table(struct pyiommufd_file *iommufd, uint32_t device_id, uint32_t ioas_id, uint64_t iova,
                             uint64_t length, uint64_t dst_iova)
{
    int fd = hold(iommufd), code = 0;
    int64_t scratch;

    if (fd < 0)
        return EBADF;
    if (!length) {
        code = try_page_table(fd, device_id, ioas_id);
    } else if ((scratch = ioas_alloc(fd)) < 0) {
        code = errno;
    } else {
        /* Readable is enough: whether the memory is pinned for writing was said by the first map of it. */
        if (copy(fd, scratch, IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE, ioas_id, iova, length, &dst_iova))
            code = errno;
        else
            code = try_page_table(fd, device_id, scratch);
        destroy(fd, scratch);
    }
    let_go(iommufd);
    return code;
}

/* Devices. */

int pyiommufd_bind(struct pyiommufd_file *cdev, struct pyiommufd_object *device, struct pyiommufd_file *owner,
                   const void *token)
{
    struct vfio_device_bind_iommufd command = {
        /* Kernels from before the token answer E2BIG for a longer struct only where its tail is not zero. */
        .argsz = sizeof(command),
        .flags = token ? VFIO_DEVICE_BIND_FLAG_TOKEN : 0,
        .token_uuid_ptr = (uintptr_t)token,
    };
    int fd = hold(cdev), result = -1;

    if (fd < 0)
        return -1;
    command.iommufd = hold(device->file);
    if (command.iommufd >= 0) {
        result = ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, &command);
        let_go(device->file);
    }
    if (!result) {
        int unbound = fd;

        device->id = command.out_devid;
        /* The fd changes hands; unless it is being closed, which waits for this and then unbinds. */
        if (__atomic_compare_exchange_n(&cdev->fd, &unbound, -1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            own(owner, fd);
            STORE(&device->state, LIVE);
        } else {
            errno = EBADF;
            result = -1;
        }
    }
    let_go(cdev);
    return result;
}

int pyiommufd_attach(struct pyiommufd_file *cdev, uint32_t pt_id, int64_t pasid, uint32_t *group_on, int *attached)
{
    struct vfio_device_attach_iommufd_pt command = {
        /* Without a PASID the struct ends where 6.6 ended it, for the kernels of that time. */
        .argsz = pasid < 0 ? offsetof(struct vfio_device_attach_iommufd_pt, pasid) : sizeof(command),
        .flags = pasid < 0 ? 0 : VFIO_DEVICE_ATTACH_PASID,
        .pt_id = pt_id,
        .pasid = pasid < 0 ? 0 : (uint32_t)pasid,
    };
    int result = pyiommufd_ioctl(cdev, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &command);

    if (!result) {
        *group_on = pt_id;
        *attached = 1;
    }
    return result;
}

int pyiommufd_detach(struct pyiommufd_file *cdev, int64_t pasid, int *attached)
{
    struct vfio_device_detach_iommufd_pt command = {
        .argsz = pasid < 0 ? offsetof(struct vfio_device_detach_iommufd_pt, pasid) : sizeof(command),
        .flags = pasid < 0 ? 0 : VFIO_DEVICE_DETACH_PASID,
        .pasid = pasid < 0 ? 0 : (uint32_t)pasid,
    };
    int result = pyiommufd_ioctl(cdev, VFIO_DEVICE_DETACH_IOMMUFD_PT, &command);

    if (!result)
        *attached = 0;
    return result;
}
