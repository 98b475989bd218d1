/* Files: C code behind entry.h. */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
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
static void back_off(unsigned int *tries)
{
    static const struct timespec pause = { .tv_nsec = 100000 };

    if (++*tries < 64)
        sched_yield();
    else
        nanosleep(&pause, NULL);
}

/*
 * Begin to use a file, and return its fd. close() waits for the calls under way, and every later one finds that there
 * is no fd: so none of them can reach what gets the same number next.
 */
static int file_get(struct pyiommufd_file *file)
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

static void file_put(struct pyiommufd_file *file)
{
    ADD(&file->users, -1);
}

static int file_set_fd(struct pyiommufd_file *file, int fd)
{
    if (fd < 0)
        return -errno;
    STORE(&file->fd, fd);
    return 0;
}

int pyiommufd_file_open(struct pyiommufd_file *file, const char *path, int flags)
{
    int fd = (int)COUNTED(result_or_errno(open(path, flags | O_CLOEXEC)));

    return fd < 0 ? fd : file_set_fd(file, fd);
}

int pyiommufd_file_eventfd(struct pyiommufd_file *file)
{
    return file_set_fd(file, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

int pyiommufd_file_memfd(struct pyiommufd_file *file, const char *name, unsigned int flags, int64_t length)
{
    int fd = (int)syscall(SYS_memfd_create, name, flags), result = file_set_fd(file, fd);

    return result ? result : (int)result_or_errno(ftruncate(fd, length));
}

int pyiommufd_file_duplicate(struct pyiommufd_file *file, struct pyiommufd_file *other)
{
    int fd = file_get(other), result;

    if (fd < 0)
        return fd;
    result = file_set_fd(file, fcntl(fd, F_DUPFD_CLOEXEC, 0));
    file_put(other);
    return result;
}

/*
 * The fd that wakes waiting threads: a separate eventfd, since a write to the file itself, if that is an eventfd,
 * would signal its reader, such as the kernel. It is made by the first wait. The caller has the file in use (file_get).
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
    unsigned int tries = 0;
    const uint64_t one = 1;

    if (inherited >= 0)
        fd = inherited;
    if (fd >= 0)
        STORE(&file->closing, fd);
    /* A second caller waits as well, and leaves the close to the first. */
    for (;;) {
        const unsigned int users = LOAD(&file->users);

        wake = fd < 0 || inherited >= 0 ? -1 : LOAD(&file->wake);
        /* Also without users: others may wait on a duplicate of the wake fd. If it is full it is readable already. */
        if (wake >= 0 && write(wake, &one, sizeof(one)) < 0)
            sched_yield();
        if (!users)
            break;
        back_off(&tries);
    }
    if (fd < 0)
        return 0;
    wake = SWAP(&file->wake, -1);
    if (wake >= 0)
        close(wake);
    STORE(&file->closing, -1);
    return (int)result_or_errno(close(fd));
}

/* Other threads do not exist in a forked child: drop their uses, and finish a close that one of them had begun. */
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
    const int one = file_get(file), two = file_get(other);
    int result = 0;

    if (one >= 0 && two >= 0) {
        /* F_DUPFD_QUERY (linux/fcntl.h, since 6.10): 0 or 1. */
        result = fcntl(one, 1024 + 3, two);
        if (result < 0)
            /* 0: KCMP_FILE, of linux/kcmp.h; not in every kernel, nor in every container. */
            result = syscall(SYS_kcmp, getpid(), getpid(), 0, (unsigned long)one, (unsigned long)two) == 0;
    }
    if (one >= 0)
        file_put(file);
    if (two >= 0)
        file_put(other);
    return result;
}

int pyiommufd_file_wait(struct pyiommufd_file *file, int milliseconds)
{
    struct pollfd waiting[2] = { { .fd = file_get(file), .events = POLLIN }, { .events = POLLIN } };
    int result = waiting[0].fd;

    if (result < 0)
        return result;
    /* While the file is in use, close waits. If no wake fd could be made (fd limit), poll in slices of 100 ms. */
    waiting[1].fd = waker(file);
    if (waiting[1].fd < 0 && (milliseconds < 0 || milliseconds > 100))
        milliseconds = 100;
    result = (int)result_or_errno(poll(waiting, 2, milliseconds));
    file_put(file);
    return result;
}

int pyiommufd_file_watch(struct pyiommufd_file *file, struct pyiommufd_file *watch, struct pyiommufd_file *end)
{
    struct epoll_event event = { .events = EPOLLIN | EPOLLET };
    int fd = file_get(file), result;

    if (fd < 0)
        return fd;
    result = waker(file);
    if (result >= 0)
        result = file_set_fd(end, fcntl(result, F_DUPFD_CLOEXEC, 0));
    if (!result)
        result = file_set_fd(watch, epoll_create1(EPOLL_CLOEXEC));
    if (!result)
        result = (int)result_or_errno(epoll_ctl(watch->fd, EPOLL_CTL_ADD, fd, &event));
    event.events = EPOLLIN;
    if (!result)
        result = (int)result_or_errno(epoll_ctl(watch->fd, EPOLL_CTL_ADD, end->fd, &event));
    file_put(file);
    return result;
}

void pyiommufd_file_rest(int watch)
{
    struct epoll_event event;

    epoll_wait(watch, &event, 1, 0);
}

int pyiommufd_file_readable(struct pyiommufd_file *file)
{
    struct pollfd look = { .fd = file_get(file), .events = POLLIN };
    int result = look.fd;

    if (result < 0)
        return result;
    result = (int)result_or_errno(poll(&look, 1, 0));
    file_put(file);
    return result;
}

int64_t pyiommufd_file_read(struct pyiommufd_file *file, void *memory, uint64_t length, int64_t offset, uint64_t *done)
{
    int fd = file_get(file);
    int64_t result;

    if (fd < 0)
        return fd;
    result = COUNTED(result_or_errno(offset < 0 ? read(fd, memory, length) : pread(fd, memory, length, offset)));
    if (done)
        *done = result < 0 ? 0 : (uint64_t)result;
    file_put(file);
    return result;
}

uint64_t pyiommufd_file_take(struct pyiommufd_file *file)
{
    int fd = file_get(file);
    uint64_t count;
    int64_t result;

    if (fd < 0)
        return UINT64_MAX;
    result = COUNTED(result_or_errno(read(fd, &count, sizeof(count))));
    file_put(file);
    if (result == -EAGAIN)
        return 0;
    return result == sizeof(count) ? count : UINT64_MAX;
}

int64_t pyiommufd_file_write(struct pyiommufd_file *file, const void *memory, uint64_t length, int64_t offset)
{
    int fd = file_get(file);
    int64_t result;

    if (fd < 0)
        return fd;
    result = COUNTED(result_or_errno(offset < 0 ? write(fd, memory, length) : pwrite(fd, memory, length, offset)));
    file_put(file);
    return result;
}

int pyiommufd_file_change16(struct pyiommufd_file *file, int64_t offset, uint16_t bits, int on)
{
    int fd = file_get(file);
    unsigned char bytes[2];
    int64_t done;
    int result = 0;

    if (fd < 0)
        return fd;
    done = COUNTED(result_or_errno(pread(fd, bytes, 2, offset)));
    if (done == 2) {
        bytes[0] = (unsigned char)(on ? bytes[0] | bits : bytes[0] & ~bits);
        bytes[1] = (unsigned char)(on ? bytes[1] | bits >> 8 : bytes[1] & ~(bits >> 8));
        done = COUNTED(result_or_errno(pwrite(fd, bytes, 2, offset)));
    }
    if (done != 2)
        result = done < 0 ? (int)done : -EIO;
    file_put(file);
    return result;
}

int pyiommufd_ioctl(struct pyiommufd_file *file, unsigned long request, void *argument)
{
    int fd = file_get(file), result;

    if (fd < 0)
        return fd;
    result = issue(fd, request, argument);
    file_put(file);
    return result;
}

int pyiommufd_raw_ioctl(int fd, unsigned long request, void *argument)
{
    return issue(fd, request, argument);
}
