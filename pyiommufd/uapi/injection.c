/*
 * Failures on demand: C code behind entry.h. Included first after the declarations by the source that build_cffi.py makes.
 *
 * It is here for tests (pyiommufd.testing.mock.fail_nth): what a program does between two calls of the library allocates
 * memory in the kernel as well, and only around the call itself none of that is counted. Nothing else calls
 * pyiommufd_injection_begin, and a process that has not pays for one comparison.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

static unsigned int injecting; /* threads where something is to fail: a thread's own record is dearer to look at */

static __thread struct {
    int counter;       /* an fd of this thread's fail-nth file; -1: nothing is to fail */
    unsigned int left; /* the allocation that is to fail, of those from now on; 0: it has */
    int error;         /* the negative errno, where the kernel did not take the number, or give it back */
} injection = { .counter = -1 };

/* The result of a system call; the negative errno if it failed, as entry.h says. */
static int64_t result_or_errno(int64_t result)
{
    return result < 0 ? -errno : result;
}

static int64_t set_counter(unsigned int number)
{
    char text[16];
    int length = snprintf(text, sizeof(text), "%u", number);

    return result_or_errno(pwrite(injection.counter, text, (size_t)length, 0));
}

static void start_counting(void)
{
    int64_t result = injection.left ? set_counter(injection.left) : 0;

    if (result < 0)
        injection.error = (int)result;
}

/* Stop, and return what the call in between did. */
static int64_t stop_counting(int64_t result)
{
    char text[16] = "";
    int64_t done;

    if (!injection.left)
        return result;
    /* Where copies from and to user memory fail as well (fail_usercopy), these calls may be what does: EFAULT. */
    done = result_or_errno(pread(injection.counter, text, sizeof(text) - 1, 0));
    if (done >= 0)
        injection.left = (unsigned int)strtoul(text, NULL, 10);
    else if (done == -EFAULT)
        injection.left = 1;
    else
        injection.error = (int)done;
    done = set_counter(0);
    if (done == -EFAULT)
        done = set_counter(0);
    if (done < 0)
        injection.error = (int)done;
    return result;
}

/* A call whose allocations count, with the negative errno as its result if it fails. Evaluated once. */
#define COUNTED(call) \
    (__builtin_expect(!__atomic_load_n(&injecting, __ATOMIC_RELAXED), 1) || injection.counter < 0 \
         ? (call)                                                                                 \
         : (start_counting(), stop_counting(call)))

/* Every ioctl of the library. */
static int issue(int fd, unsigned long request, void *argument)
{
    return (int)COUNTED(result_or_errno(ioctl(fd, request, argument)));
}

int pyiommufd_injection_begin(uint32_t number)
{
    int64_t result;

    if (injection.counter >= 0)
        return -EALREADY;
    injection.left = number;
    injection.error = 0;
    injection.counter = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
    if (injection.counter < 0)
        return -errno;
    __atomic_fetch_add(&injecting, 1, __ATOMIC_RELAXED);
    result = set_counter(0);
    if (result < 0)
        pyiommufd_injection_end();
    return result < 0 ? (int)result : 0;
}

/* Nothing is written here: in a forked child the file is the parent's. */
int64_t pyiommufd_injection_end(void)
{
    if (injection.counter >= 0) {
        close(injection.counter);
        __atomic_fetch_sub(&injecting, 1, __ATOMIC_RELAXED);
    }
    injection.counter = -1;
    return injection.error ? injection.error : (int64_t)injection.left;
}
