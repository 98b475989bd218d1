/* C code behind window.h. Included after file.c, with what that includes, by the source that build_cffi.py makes. */

#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>

/*
 * The SIGBUS guard.
 *
 * A mapped BAR raises SIGBUS while the device's memory decode is off or the device sleeps. Checking first
 * is not enough, as another thread can reset the device between check and access. So each access runs under
 * a guard of its own thread: the handler jumps back to it when the signal comes from the access, and hands any
 * other SIGBUS on to the handler that was there before.
 *
 * A process has one SIGBUS handler, and any code may replace it at any time: faulthandler does when it is enabled, and
 * when it is disabled, by restoring the one it found. So each access checks whether the handler is ours, and installs
 * ours if not. The handler that ours replaces may itself have replaced ours, and forward to it. With one function the
 * two would call each other for ever; so there are several, the layers. Each forwards to the handler that it replaced,
 * and is installed again only over that same handler.
 */
#define LAYERS 8

/* An access to memory from `begin` up to `end`. */
struct guard {
    sigjmp_buf jump;
    unsigned char *volatile begin, *volatile end;
    unsigned char *volatile at; /* of the fault; NULL: the processor did not say */
};

#ifdef __GLIBC__
/* Otherwise glibc allocates it when a thread first asks for it, which may be in a signal handler, within malloc. */
#define ALWAYS_THERE __attribute__((tls_model("initial-exec")))
#else
#define ALWAYS_THERE
#endif

/* That which this thread is making; NULL: none. */
static __thread struct guard *volatile guard ALWAYS_THERE;

static struct sigaction replaced[LAYERS]; /* the handler that each layer has replaced */
static int used_layers; /* those from 0 on that have been installed */
static atomic_int current_layer; /* the layer that was the process's handler when an access last asked */
static atomic_flag install_lock = ATOMIC_FLAG_INIT;

static void on_sigbus(const struct sigaction *next, int number, siginfo_t *info, void *context)
{
    struct guard *const access = guard;
    unsigned char *at = info->si_addr;

    /*
     * si_code <= 0: sent by a process, not raised by an access; nor is the report of a memory error elsewhere. An access
     * of the memory on the other side of a copy is not the window's. Arm's external aborts may come without an address.
     */
    guard = NULL;
    if (access && info->si_code > 0 && info->si_code != BUS_MCEERR_AO &&
        (!at || (at >= access->begin && at < access->end))) {
        access->at = at;
        siglongjmp(access->jump, 1);
    }
    if (next->sa_flags & SA_SIGINFO) {
        next->sa_sigaction(number, info, context);
    } else if (next->sa_handler == SIG_IGN && info->si_code <= 0) {
        /* Ignored. */
    } else if (next->sa_handler == SIG_DFL || next->sa_handler == SIG_IGN) {
        /* What the signal would have done without us: end the process, now that it is unhandled. */
        struct sigaction standard = { .sa_handler = SIG_DFL };

        sigaction(SIGBUS, &standard, NULL);
        if (info->si_code <= 0)
            raise(number);
    } else {
        next->sa_handler(number);
    }
    guard = access;
}

#define LAYER(layer)                                                          \
    static void on_sigbus_##layer(int number, siginfo_t *info, void *context) \
    {                                                                         \
        on_sigbus(&replaced[layer], number, info, context);                   \
    }
LAYER(0) LAYER(1) LAYER(2) LAYER(3) LAYER(4) LAYER(5) LAYER(6) LAYER(7)

static void (*const layers[LAYERS])(int, siginfo_t *, void *) = {
    on_sigbus_0, on_sigbus_1, on_sigbus_2, on_sigbus_3, on_sigbus_4, on_sigbus_5, on_sigbus_6, on_sigbus_7,
};

/*
 * SA_NODEFER: leaving the handler by a jump then has no signal mask to restore, which would be a system call for each
 * access.
 */
static const int layer_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;

static int is_replaced_by(int layer, const struct sigaction *handler)
{
    const int standard = handler->sa_handler == SIG_DFL || handler->sa_handler == SIG_IGN;

    return replaced[layer].sa_sigaction == handler->sa_sigaction &&
           (standard || replaced[layer].sa_flags == handler->sa_flags);
}

/*
 * Install the layer that has replaced the current handler before, or one that was never installed: a handler that is put
 * back later may forward to any other. Or the current layer again if signal() dropped its flags.
 */
static void set_layer(void)
{
    struct sigaction current, ours = { .sa_flags = layer_flags };
    int layer;

    sigaction(SIGBUS, NULL, &current);
    for (layer = 0; layer < LAYERS && current.sa_sigaction != layers[layer];)
        layer++;
    if (layer == LAYERS) {
        for (layer = 0; layer < used_layers && !is_replaced_by(layer, &current);)
            layer++;
        if (layer == LAYERS) {
            /* More foreign handlers than layers: from now on they are no longer called. */
            layer = LAYERS - 1;
            current = (struct sigaction){ .sa_handler = SIG_DFL };
        }
        if (layer == used_layers)
            used_layers++;
        replaced[layer] = current;
    }
    ours.sa_sigaction = layers[layer];
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, NULL);
    atomic_store(&current_layer, layer);
}

static void ensure_guard(void)
{
    struct sigaction current;

    if (!sigaction(SIGBUS, NULL, &current) && current.sa_sigaction == layers[atomic_load(&current_layer)] &&
        (current.sa_flags & layer_flags) == layer_flags)
        return;
    while (atomic_flag_test_and_set(&install_lock))
        sched_yield();
    set_layer();
    atomic_flag_clear(&install_lock);
}

/*
 * Mapped windows.
 *
 * Made and mapped in two steps, as Python may run a signal handler, and raise from it, after each call: what is
 * mapped then has an owner already, which unmaps it.
 */
enum window_state { NEW, MAPPING, MAPPED, UNMAPPING, UNMAPPED };

struct pyiommufd_window {
    unsigned char *base;
    uint64_t length;
    int protection;
    atomic_uint users; /* accesses under way */
    atomic_int state;
    pid_t owner; /* a forked child has the struct, and not what it maps */
};

struct pyiommufd_window *pyiommufd_window_new(void)
{
    struct pyiommufd_window *window = calloc(1, sizeof(*window));

    if (window)
        window->owner = getpid();
    return window;
}

static int advance(struct pyiommufd_window *window, int from, int to)
{
    return atomic_compare_exchange_strong(&window->state, &from, to);
}

int pyiommufd_window_map(struct pyiommufd_window *window, struct pyiommufd_file *file, uint64_t offset, uint64_t length,
                         int readable, int writeable)
{
    const int protection = (readable ? PROT_READ : 0) | (writeable ? PROT_WRITE : 0);
    int64_t base;
    int fd, result = 0;

    if (!advance(window, NEW, MAPPING))
        return -ECANCELED;
    fd = file_get(file);
    if (fd < 0) {
        result = fd;
    } else {
        base = COUNTED(result_or_errno((intptr_t)mmap(NULL, length, protection, MAP_SHARED, fd, (off_t)offset)));
        if (base < 0)
            result = (int)base;
        file_put(file);
    }
    if (result) {
        atomic_store(&window->state, UNMAPPED);
        return result;
    }
    /* A forked child that inherited the mapping would keep the device bound after its owner has closed it. */
    window->base = (unsigned char *)(intptr_t)base;
    madvise(window->base, length, MADV_DONTFORK);
    window->length = length;
    window->protection = protection;
    atomic_store(&window->state, MAPPED);
    return 0;
}

/*
 * Waits for the accesses under way, so that none of them can hit what is mapped there next; and for another thread
 * that is unmapping or mapping, so that nothing is mapped when it returns.
 */
int pyiommufd_window_unmap(struct pyiommufd_window *window)
{
    unsigned int tries = 0;

    if (advance(window, NEW, UNMAPPED))
        return 0;
    while (window->owner == getpid() && atomic_load(&window->state) != UNMAPPED) {
        if (advance(window, MAPPED, UNMAPPING)) {
            int result;

            while (atomic_load(&window->users))
                back_off(&tries);
            result = (int)result_or_errno(munmap(window->base, window->length));
            atomic_store(&window->state, UNMAPPED);
            return result;
        }
        back_off(&tries);
    }
    return 0;
}

void pyiommufd_window_forget(struct pyiommufd_window *window)
{
    atomic_flag_clear(&install_lock); /* a thread of the parent may have held it */
    atomic_store(&window->state, UNMAPPED);
}

int pyiommufd_window_mapped(struct pyiommufd_window *window)
{
    return atomic_load(&window->state) == MAPPED;
}

void pyiommufd_window_free(struct pyiommufd_window *window)
{
    if (window)
        pyiommufd_window_unmap(window);
    free(window);
}

/* The barrier between an access to DMA memory and one to a register. */
#if defined(__x86_64__) || defined(__i386__)
#define BARRIER() __asm__ __volatile__("" ::: "memory")
#elif defined(__aarch64__)
#define BARRIER() __asm__ __volatile__("dmb osh" ::: "memory")
#else
#define BARRIER() __sync_synchronize()
#endif

/* 0 where an access is possible; it is under way from here to leave(). */
static int enter(struct pyiommufd_window *window, uint64_t offset, uint64_t length, int protection)
{
    int result = 0;

    atomic_fetch_add(&window->users, 1);
    if (atomic_load(&window->state) != MAPPED)
        result = -EBADF;
    else if (!(window->protection & protection))
        result = -EACCES;
    else if (offset > window->length || length > window->length - offset)
        result = -ERANGE;
    if (result)
        atomic_fetch_sub(&window->users, 1);
    return result;
}

static void leave(struct pyiommufd_window *window)
{
    atomic_fetch_sub(&window->users, 1);
}

/*
 * Between a window and memory, in ascending order, by accesses of the window that its address is a multiple of and the
 * length has room for: of 8 bytes, and before and after those of 4, 2 and 1. So a length of 1, 2, 4 or 8 at a multiple
 * of it is one access. The memory may be aligned in any way.
 */
#define ACCESS(type)                                              \
    do {                                                          \
        type value;                                               \
                                                                  \
        if (writing) {                                            \
            memcpy(&value, memory, sizeof(value));                \
            *(volatile type *)address = value;                    \
        } else {                                                  \
            value = *(volatile type *)address;                    \
            memcpy(memory, &value, sizeof(value));                \
        }                                                         \
        address += sizeof(value);                                 \
        memory += sizeof(value);                                  \
        length -= sizeof(value);                                  \
    } while (0)

static inline __attribute__((always_inline)) void transfer(unsigned char *address, unsigned char *memory,
                                                           uint64_t length, int writing)
{
    if ((uintptr_t)address & 1 && length >= 1)
        ACCESS(uint8_t);
    if ((uintptr_t)address & 2 && length >= 2)
        ACCESS(uint16_t);
    if ((uintptr_t)address & 4 && length >= 4)
        ACCESS(uint32_t);
    while (length >= 64) {
        ACCESS(uint64_t);
        ACCESS(uint64_t);
        ACCESS(uint64_t);
        ACCESS(uint64_t);
        ACCESS(uint64_t);
        ACCESS(uint64_t);
        ACCESS(uint64_t);
        ACCESS(uint64_t);
    }
    while (length >= 8)
        ACCESS(uint64_t);
    if (length >= 4)
        ACCESS(uint32_t);
    if (length >= 2)
        ACCESS(uint16_t);
    if (length)
        ACCESS(uint8_t);
}

/* By itself: after sigsetjmp() compilers keep less in registers. */
static __attribute__((noinline)) void transfer_many(unsigned char *address, unsigned char *memory, uint64_t length,
                                                    int writing)
{
    if (writing)
        transfer(address, memory, length, 1);
    else
        transfer(address, memory, length, 0);
}

/* How many bytes were moved before the device did not answer: all of the length if it did. */
static uint64_t move(const struct pyiommufd_window *window, uint64_t offset, void *memory, uint64_t length, int writing)
{
    struct guard here;

    ensure_guard();
    here.begin = window->base;
    here.end = window->base + window->length;
    if (sigsetjmp(here.jump, 0)) {
        unsigned char *at = here.at;

        /* A page of failed memory is reported by its start. */
        return at > window->base + offset ? (uint64_t)(at - (window->base + offset)) : 0;
    }
    guard = &here;
    if (writing)
        BARRIER();
    if (length > 8)
        transfer_many(window->base + offset, memory, length, writing);
    else if (writing)
        transfer(window->base + offset, memory, length, 1);
    else
        transfer(window->base + offset, memory, length, 0);
    if (!writing)
        BARRIER();
    guard = NULL;
    return length;
}

/*
 * One access, at an offset that is a multiple of its bytes, for window_type.c.
 *
 * QEMU 7.2 (TCG) leaves more bytes in the processor's register than were loaded, where a device implements wider
 * accesses only. They go no further, as the value of a read is written to memory before it is looked at.
 */
static int one_access(struct pyiommufd_window *window, uint64_t offset, void *value, unsigned int width, int writing)
{
    int result = enter(window, offset, width, writing ? PROT_WRITE : PROT_READ);

    if (result)
        return result;
    if (offset & (width - 1))
        result = -EINVAL;
    else if (move(window, offset, value, width, writing) != width)
        result = -EFAULT;
    leave(window);
    return result;
}

static int copy(struct pyiommufd_window *window, uint64_t offset, void *memory, uint64_t length, uint64_t *done,
                int writing)
{
    int result = enter(window, offset, length, writing ? PROT_WRITE : PROT_READ);

    if (result)
        return result;
    *done = move(window, offset, memory, length, writing);
    leave(window);
    return *done == length ? 0 : -EFAULT;
}

int pyiommufd_window_copy_out(struct pyiommufd_window *window, uint64_t offset, void *memory, uint64_t length,
                              uint64_t *done)
{
    return copy(window, offset, memory, length, done, 0);
}

int pyiommufd_window_copy_in(struct pyiommufd_window *window, uint64_t offset, const void *memory, uint64_t length,
                             uint64_t *done)
{
    return copy(window, offset, (void *)memory, length, done, 1);
}
