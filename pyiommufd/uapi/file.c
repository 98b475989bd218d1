/* Files: C code behind entry.h. Included first after the declarations by the source that build_cffi.py makes. */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LOAD(at) __atomic_load_n(at, __ATOMIC_SEQ_CST)
#define STORE(at, value) __atomic_store_n(at, value, __ATOMIC_SEQ_CST)
#define SWAP(at, value) __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST)
#define ADD(at, value) __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST)

/* Back off between two checks for the end of another thread's call, which may be a long system call. */
static void look_again(unsigned int *looks)
{
    static const struct timespec pause = { .tv_nsec = 100000 };

    if (++*looks < 64)
        sched_yield();
    else
        nanosleep(&pause, NULL);
}

/* The result of a call, with the reason where it has failed, as entry.h says. */
static int64_t with_reason(int64_t result)
{
    return result < 0 ? -errno : result;
}

/*
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
        return -EBADF;
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
        return -errno;
    STORE(&file->fd, fd);
    return 0;
}

int pyiommufd_file_open(struct pyiommufd_file *file, const char *path, int flags)
{
    return own(file, open(path, flags | O_CLOEXEC));
}

int pyiommufd_file_eventfd(struct pyiommufd_file *file)
{
    return own(file, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

int pyiommufd_file_memfd(struct pyiommufd_file *file, const char *name, unsigned int flags, int64_t length)
{
    int fd = (int)syscall(SYS_memfd_create, name, flags), result = own(file, fd);

    return result ? result : (int)with_reason(ftruncate(fd, length));
}

int pyiommufd_file_duplicate(struct pyiommufd_file *file, struct pyiommufd_file *other)
{
    int fd = hold(other), result;

    if (fd < 0)
        return fd;
    result = own(file, fcntl(fd, F_DUPFD_CLOEXEC, 0));
    let_go(other);
    return result;
}

/*
 * The fd that wakes waiting threads: a separate eventfd, since a write to the file itself, if that is an eventfd,
 * would signal its reader, such as the kernel. It is made by the first wait. The caller holds the file.
 */
static int waker(struct pyiommufd_file *file)
{
    int none = -1, wake = LOAD(&file->wake);

    if (wake >= 0)
        return wake;
    wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake < 0)
        return -errno;
    if (__atomic_compare_exchange_n(&file->wake, &none, wake, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return wake;
    close(wake);
    return none;
}

int pyiommufd_file_close(struct pyiommufd_file *file)
{
    int fd = SWAP(&file->fd, -1), inherited = SWAP(&file->inherited, -1), wake;
    unsigned int looks = 0;
    const uint64_t one = 1;

    if (inherited >= 0)
        fd = inherited;
    if (fd >= 0)
        STORE(&file->closing, fd);
    /* A second caller waits as well, and leaves the close to the first. */
    for (;;) {
        const unsigned int users = LOAD(&file->users);

        wake = fd < 0 || inherited >= 0 ? -1 : LOAD(&file->wake);
        /* Again without users, for waiters on a duplicate of the wake fd. If the eventfd is full it fails: as good. */
        if (wake >= 0 && write(wake, &one, sizeof(one)) < 0)
            sched_yield();
        if (!users)
            break;
        look_again(&looks);
    }
    if (fd < 0)
        return 0;
    wake = SWAP(&file->wake, -1);
    if (wake >= 0)
        close(wake);
    STORE(&file->closing, -1);
    return (int)with_reason(close(fd));
}

/* Other threads do not exist in a forked child: drop their holds, and finish a close that one of them had begun. */
void pyiommufd_file_forked(struct pyiommufd_file *file)
{
    if (file->closing >= 0) {
        close(file->closing);
        if (file->wake >= 0)
            close(file->wake);
        file->closing = file->wake = -1;
    }
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
    struct pollfd waiting[2] = { { .fd = hold(file), .events = POLLIN }, { .events = POLLIN } };
    int result = waiting[0].fd;

    if (result < 0)
        return result;
    /* While the file is held, close waits. If no wake fd could be made (fd limit), poll in slices of 100 ms. */
    waiting[1].fd = waker(file);
    if (waiting[1].fd < 0 && (milliseconds < 0 || milliseconds > 100))
        milliseconds = 100;
    result = (int)with_reason(poll(waiting, 2, milliseconds));
    let_go(file);
    return result;
}

int pyiommufd_file_waker(struct pyiommufd_file *file, struct pyiommufd_file *copy)
{
    int result = hold(file);

    if (result < 0)
        return result;
    result = waker(file);
    if (result >= 0)
        result = own(copy, fcntl(result, F_DUPFD_CLOEXEC, 0));
    let_go(file);
    return result;
}

int pyiommufd_file_readable(struct pyiommufd_file *file)
{
    struct pollfd look = { .fd = hold(file), .events = POLLIN };
    int result = look.fd;

    if (result < 0)
        return result;
    result = (int)with_reason(poll(&look, 1, 0));
    let_go(file);
    return result;
}

int64_t pyiommufd_file_read(struct pyiommufd_file *file, void *memory, uint64_t length, int64_t offset, uint64_t *done)
{
    int fd = hold(file);
    int64_t result;

    if (fd < 0)
        return fd;
    result = with_reason(offset < 0 ? read(fd, memory, length) : pread(fd, memory, length, offset));
    if (done)
        *done = result < 0 ? 0 : (uint64_t)result;
    let_go(file);
    return result;
}

int64_t pyiommufd_file_write(struct pyiommufd_file *file, const void *memory, uint64_t length, int64_t offset)
{
    int fd = hold(file);
    int64_t result;

    if (fd < 0)
        return fd;
    result = with_reason(offset < 0 ? write(fd, memory, length) : pwrite(fd, memory, length, offset));
    let_go(file);
    return result;
}

int pyiommufd_file_change16(struct pyiommufd_file *file, int64_t offset, uint16_t bits, int on)
{
    int fd = hold(file);
    unsigned char bytes[2];
    ssize_t done;
    int result = 0;

    if (fd < 0)
        return fd;
    done = pread(fd, bytes, 2, offset);
    if (done == 2) {
        bytes[0] = (unsigned char)(on ? bytes[0] | bits : bytes[0] & ~bits);
        bytes[1] = (unsigned char)(on ? bytes[1] | bits >> 8 : bytes[1] & ~(bits >> 8));
        done = pwrite(fd, bytes, 2, offset);
    }
    if (done != 2)
        result = done < 0 ? -errno : -EIO;
    let_go(file);
    return result;
}

int pyiommufd_ioctl(struct pyiommufd_file *file, unsigned long request, void *argument)
{
    int fd = hold(file), result;

    if (fd < 0)
        return fd;
    result = (int)with_reason(ioctl(fd, request, argument));
    let_go(file);
    return result;
}

int pyiommufd_raw_ioctl(int fd, unsigned long request, void *argument)
{
    return (int)with_reason(ioctl(fd, request, argument));
}
