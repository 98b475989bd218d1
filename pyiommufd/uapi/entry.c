/* C code behind entry.h. Included after the ABI declarations by the source that build_cffi.py makes. */

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

int pyiommufd_ioctl(int fd, unsigned long request, void *argument)
{
    return ioctl(fd, request, argument);
}

int pyiommufd_destroy(int fd, uint32_t id)
{
    struct iommu_destroy command = { .size = sizeof(command), .id = id };

    return ioctl(fd, IOMMU_DESTROY, &command);
}

int64_t pyiommufd_ioas_alloc(int fd)
{
    struct iommu_ioas_alloc command = { .size = sizeof(command) };

    if (ioctl(fd, IOMMU_IOAS_ALLOC, &command))
        return -1;
    return command.out_ioas_id;
}

/*
 * Kept because Python may run a signal handler, and raise from it, between the return of the call and the use of
 * its result: what was mapped can then still be found and undone, and what was unmapped is not taken for mapped.
 */
struct last_call {
    int fd;
    uint32_t ioas_id;
    uint64_t iova; /* all ones: none */
};

static __thread struct last_call last_map = { .iova = UINT64_MAX }, last_unmap = { .iova = UINT64_MAX };

static uint64_t take(struct last_call *last, int fd, uint32_t ioas_id)
{
    uint64_t iova = last->fd == fd && last->ioas_id == ioas_id ? last->iova : UINT64_MAX;

    last->iova = UINT64_MAX;
    return iova;
}

uint64_t pyiommufd_ioas_last_map(int fd, uint32_t ioas_id)
{
    return take(&last_map, fd, ioas_id);
}

uint64_t pyiommufd_ioas_last_unmap(int fd, uint32_t ioas_id)
{
    return take(&last_unmap, fd, ioas_id);
}

/* What was unmapped may be mapped again by this, and the other way round: neither outlives the other. */
static uint64_t mapped(int fd, uint32_t ioas_id, uint64_t iova)
{
    last_map = (struct last_call){ .fd = fd, .ioas_id = ioas_id, .iova = iova };
    last_unmap.iova = UINT64_MAX;
    return iova;
}

uint64_t pyiommufd_ioas_map(int fd, uint32_t ioas_id, uint32_t flags, const void *user_va, uint64_t length,
                            uint64_t iova)
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
        .ioas_id = ioas_id,
        .user_va = (uintptr_t)user_va,
        .length = length,
        .iova = iova,
    };

    last_map.iova = UINT64_MAX;
    if (((uintptr_t)user_va | length | iova) & in_page || !length) {
        errno = 0;
        return UINT64_MAX;
    }
    if (ioctl(fd, IOMMU_IOAS_MAP, &command))
        return UINT64_MAX;
    return mapped(fd, ioas_id, command.iova);
}

uint64_t pyiommufd_ioas_map_file(int fd, uint32_t ioas_id, uint32_t flags, int file, uint64_t start, uint64_t length,
                                 uint64_t iova)
{
    struct iommu_ioas_map_file command = {
        .size = sizeof(command),
        .flags = flags,
        .ioas_id = ioas_id,
        .fd = file,
        .start = start,
        .length = length,
        .iova = iova,
    };

    last_map.iova = UINT64_MAX;
    if (ioctl(fd, IOMMU_IOAS_MAP_FILE, &command))
        return UINT64_MAX;
    return mapped(fd, ioas_id, command.iova);
}

uint64_t pyiommufd_ioas_unmap(int fd, uint32_t ioas_id, uint64_t iova, uint64_t length)
{
    struct iommu_ioas_unmap command = {
        .size = sizeof(command),
        .ioas_id = ioas_id,
        .iova = iova,
        .length = length,
    };

    last_unmap.iova = UINT64_MAX;
    if (ioctl(fd, IOMMU_IOAS_UNMAP, &command))
        return UINT64_MAX;
    last_unmap = (struct last_call){ .fd = fd, .ioas_id = ioas_id, .iova = iova };
    last_map.iova = UINT64_MAX;
    return command.length;
}

uint64_t pyiommufd_ioas_copy(int fd, uint32_t dst_ioas_id, uint32_t flags, uint32_t src_ioas_id, uint64_t src_iova,
                             uint64_t length, uint64_t dst_iova)
{
    struct iommu_ioas_copy command = {
        .size = sizeof(command),
        .flags = flags,
        .dst_ioas_id = dst_ioas_id,
        .src_ioas_id = src_ioas_id,
        .length = length,
        .dst_iova = dst_iova,
        .src_iova = src_iova,
    };

    last_map.iova = UINT64_MAX;
    if (ioctl(fd, IOMMU_IOAS_COPY, &command))
        return UINT64_MAX;
    return mapped(fd, dst_ioas_id, command.dst_iova);
}

uint64_t pyiommufd_ioas_map_many(int fd, uint32_t ioas_id, uint32_t flags, const void *memory, uint64_t *pieces,
                                 uint64_t count)
{
    uint64_t done;

    pieces[3 * count] = 0;
    for (done = 0; done < count; done++) {
        uint64_t *piece = pieces + 3 * done;
        int fixed = piece[2] != UINT64_MAX;
        uint64_t iova = pyiommufd_ioas_map(fd, ioas_id, fixed ? flags | IOMMU_IOAS_MAP_FIXED_IOVA : flags,
                                           (const char *)memory + piece[0], piece[1], fixed ? piece[2] : 0);

        if (iova == UINT64_MAX)
            break;
        piece[2] = iova;
        pieces[3 * count] = done + 1;
    }
    return done;
}

uint64_t pyiommufd_ioas_unmap_many(int fd, uint32_t ioas_id, const uint64_t *pieces, uint64_t count)
{
    uint64_t done;

    for (done = 0; done < count; done++)
        if (pyiommufd_ioas_unmap(fd, ioas_id, pieces[3 * done + 2], pieces[3 * done + 1]) == UINT64_MAX)
            break;
    return done;
}

static int copies(int fd, uint32_t dst_ioas_id, uint32_t src_ioas_id, uint64_t iova, uint64_t length)
{
    struct iommu_ioas_copy command = {
        .size = sizeof(command),
        /* Readable is what a copy of anything may be. */
        .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE,
        .dst_ioas_id = dst_ioas_id,
        .src_ioas_id = src_ioas_id,
        .length = length,
        .dst_iova = iova,
        .src_iova = iova,
    };

    return ioctl(fd, IOMMU_IOAS_COPY, &command) == 0;
}

/*
 * No request asks what is mapped, but a copy is refused for a hole in its source. The copy is to an address space
 * without devices, where it pins and accounts nothing. By one call, as Python may run a signal handler, and raise
 * from it, after each: nothing is left over then.
 */
int pyiommufd_ioas_first_hole(int fd, uint32_t ioas_id, uint64_t iova, uint64_t length, uint64_t *hole)
{
    int64_t scratch = pyiommufd_ioas_alloc(fd);
    int code = 0;

    if (scratch < 0)
        return -1;
    if (!copies(fd, scratch, ioas_id, iova, length))
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
    pyiommufd_destroy(fd, scratch);
    if (code == ENOENT || code == EOVERFLOW)
        return 1;
    errno = code;
    return code ? -1 : 0;
}

int64_t pyiommufd_bind(int fd, int iommufd, const void *token)
{
    struct vfio_device_bind_iommufd command = {
        /* Kernels from before the token answer E2BIG for a longer struct only where its tail is not zero. */
        .argsz = sizeof(command),
        .flags = token ? VFIO_DEVICE_BIND_FLAG_TOKEN : 0,
        .iommufd = iommufd,
        .token_uuid_ptr = (uintptr_t)token,
    };

    if (ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, &command))
        return -1;
    return command.out_devid;
}

int64_t pyiommufd_attach(int fd, uint32_t pt_id, int64_t pasid)
{
    struct vfio_device_attach_iommufd_pt command = {
        /* Without a PASID the struct ends where 6.6 ended it, for the kernels of that time. */
        .argsz = pasid < 0 ? offsetof(struct vfio_device_attach_iommufd_pt, pasid) : sizeof(command),
        .flags = pasid < 0 ? 0 : VFIO_DEVICE_ATTACH_PASID,
        .pt_id = pt_id,
        .pasid = pasid < 0 ? 0 : (uint32_t)pasid,
    };

    if (ioctl(fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &command))
        return -1;
    return command.pt_id;
}

int pyiommufd_detach(int fd, int64_t pasid)
{
    struct vfio_device_detach_iommufd_pt command = {
        .argsz = pasid < 0 ? offsetof(struct vfio_device_detach_iommufd_pt, pasid) : sizeof(command),
        .flags = pasid < 0 ? 0 : VFIO_DEVICE_DETACH_PASID,
        .pasid = pasid < 0 ? 0 : (uint32_t)pasid,
    };

    return ioctl(fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &command);
}

/*
 * Windows.
 *
 * A mapped BAR raises SIGBUS while the device's memory decode is off or the device sleeps. Looking first is
 * no answer, as a reset in another thread can come between the look and the access. So each access runs under
 * a guard of its own thread: the handler jumps back to it when the signal comes from the access, and hands any
 * other SIGBUS on to the handler that was there before.
 */
struct pyiommufd_window {
    unsigned char *base;
    uint64_t length;
    atomic_uint users; /* accesses under way */
    atomic_int closed;
    pid_t owner; /* a forked child has the struct, and not what it maps */
};

static __thread sigjmp_buf guard;
static __thread volatile sig_atomic_t guarded;
static struct sigaction previous;
static atomic_flag installing = ATOMIC_FLAG_INIT;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    /* si_code <= 0: sent by a process, not raised by an access; nor is the report of a memory error elsewhere. */
    if (guarded && info->si_code > 0 && info->si_code != BUS_MCEERR_AO) {
        guarded = 0;
        siglongjmp(guard, 1);
    }
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(number, info, context);
    } else if (previous.sa_handler == SIG_IGN && info->si_code <= 0) {
        return;
    } else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
        /* What the signal would have done without us: end the process, now that it is unhandled. */
        struct sigaction standard = { .sa_handler = SIG_DFL };

        sigaction(SIGBUS, &standard, NULL);
        if (info->si_code <= 0)
            raise(number);
    } else {
        previous.sa_handler(number);
    }
}

/* At every map, since a handler set after ours (faulthandler's, say) has taken its place. */
static int install_guard(void)
{
    struct sigaction current, ours = { .sa_sigaction = on_sigbus };
    int result = 0;

    /*
     * SA_NODEFER: leaving the handler by a jump then has no signal mask to restore, which would be a system
     * call for each access.
     */
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    while (atomic_flag_test_and_set(&installing))
        sched_yield();
    if (sigaction(SIGBUS, NULL, &current))
        result = -1;
    else if (!(current.sa_flags & SA_SIGINFO) || current.sa_sigaction != on_sigbus) {
        previous = current;
        result = sigaction(SIGBUS, &ours, NULL);
    }
    atomic_flag_clear(&installing);
    return result;
}

/*
 * Made and mapped in two steps, as Python may run a signal handler, and raise from it, after each call: what is
 * mapped then has an owner already, which unmaps it.
 */
struct pyiommufd_window *pyiommufd_window_new(void)
{
    struct pyiommufd_window *window = calloc(1, sizeof(*window));

    if (window)
        window->closed = 1;
    return window;
}

int pyiommufd_window_map(struct pyiommufd_window *window, int fd, uint64_t offset, uint64_t length, int readable,
                         int writeable)
{
    int protection = (readable ? PROT_READ : 0) | (writeable ? PROT_WRITE : 0);
    void *base;

    if (install_guard())
        return -1;
    base = mmap(NULL, length, protection, MAP_SHARED, fd, (off_t)offset);
    if (base == MAP_FAILED)
        return -1;
    /* A forked child that inherited the mapping would keep the device bound after its owner let go. */
    madvise(base, length, MADV_DONTFORK);
    window->base = base;
    window->length = length;
    window->owner = getpid();
    atomic_store(&window->closed, 0);
    return 0;
}

/* Waits for the accesses under way, so that none of them can hit what is mapped there next. */
int pyiommufd_window_unmap(struct pyiommufd_window *window)
{
    if (atomic_exchange(&window->closed, 1))
        return 0;
    while (atomic_load(&window->users))
        sched_yield();
    return munmap(window->base, window->length);
}

void pyiommufd_window_free(struct pyiommufd_window *window)
{
    if (window && !atomic_load(&window->closed) && window->owner == getpid())
        munmap(window->base, window->length);
    free(window);
}

/* What lies between an access to memory that the device shares and one to its registers. */
#if defined(__x86_64__) || defined(__i386__)
#define BARRIER() __asm__ __volatile__("" ::: "memory")
#elif defined(__aarch64__)
#define BARRIER() __asm__ __volatile__("dmb osh" ::: "memory")
#else
#define BARRIER() __sync_synchronize()
#endif

static int enter(struct pyiommufd_window *window, uint64_t offset, unsigned int width)
{
    atomic_fetch_add(&window->users, 1);
    if (atomic_load(&window->closed))
        errno = EBADF;
    else if (width != 1 && width != 2 && width != 4 && width != 8)
        errno = EINVAL;
    else if (offset > window->length || width > window->length - offset)
        errno = ERANGE;
    else if (offset & (width - 1))
        errno = EINVAL;
    else
        return 0;
    atomic_fetch_sub(&window->users, 1);
    return -1;
}

uint64_t pyiommufd_window_read(struct pyiommufd_window *window, uint64_t offset, unsigned int width)
{
    const volatile void *address;
    uint64_t value = 0;

    if (enter(window, offset, width))
        return UINT64_MAX;
    address = window->base + offset;
    if (sigsetjmp(guard, 0)) {
        atomic_fetch_sub(&window->users, 1);
        errno = EFAULT;
        return UINT64_MAX;
    }
    guarded = 1;
    switch (width) {
    case 1:
        value = *(const volatile uint8_t *)address;
        break;
    case 2:
        value = *(const volatile uint16_t *)address;
        break;
    case 4:
        value = *(const volatile uint32_t *)address;
        break;
    case 8:
        value = *(const volatile uint64_t *)address;
        break;
    }
    BARRIER();
    guarded = 0;
    atomic_fetch_sub(&window->users, 1);
    errno = 0;
    /*
     * QEMU 7.2 (TCG) leaves more bytes in the processor's register than were loaded, where a device implements wider
     * accesses only. The compiler, which knows that there are none, is not to leave the mask out.
     */
    __asm__ __volatile__("" : "+r"(value));
    return value & UINT64_MAX >> (64 - 8 * width);
}

int pyiommufd_window_write(struct pyiommufd_window *window, uint64_t offset, unsigned int width,
                           uint64_t value)
{
    volatile void *address;

    if (enter(window, offset, width))
        return -1;
    address = window->base + offset;
    if (sigsetjmp(guard, 0)) {
        atomic_fetch_sub(&window->users, 1);
        errno = EFAULT;
        return -1;
    }
    guarded = 1;
    BARRIER();
    switch (width) {
    case 1:
        *(volatile uint8_t *)address = (uint8_t)value;
        break;
    case 2:
        *(volatile uint16_t *)address = (uint16_t)value;
        break;
    case 4:
        *(volatile uint32_t *)address = (uint32_t)value;
        break;
    case 8:
        *(volatile uint64_t *)address = value;
        break;
    }
    guarded = 0;
    atomic_fetch_sub(&window->users, 1);
    return 0;
}
