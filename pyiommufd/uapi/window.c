/* C code behind window.h. Included after entry.c by the source that build_cffi.py makes. */

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

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
