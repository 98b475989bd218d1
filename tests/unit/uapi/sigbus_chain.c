/*
 * Two handlers of SIGBUS that forward to the one that each has found, as crash reporters do; and one that is set aside and
 * put back. Loaded by sigbus_orders.py.
 */
#include <signal.h>
#include <unistd.h>

static struct sigaction found_by[2], aside;

static void forward(int which, int number, siginfo_t *info, void *context)
{
    const struct sigaction *next = &found_by[which];

    if (next->sa_flags & SA_SIGINFO)
        next->sa_sigaction(number, info, context);
    else if (next->sa_handler == SIG_DFL)
        sigaction(SIGBUS, next, NULL); /* the access that faulted is made again, and ends the process */
    else if (next->sa_handler != SIG_IGN)
        next->sa_handler(number);
}

static void first(int number, siginfo_t *info, void *context)
{
    forward(0, number, info, context);
}

static void second(int number, siginfo_t *info, void *context)
{
    forward(1, number, info, context);
}

void set_chained(int which)
{
    struct sigaction handler = { .sa_sigaction = which ? second : first, .sa_flags = SA_SIGINFO | SA_NODEFER };

    sigaction(SIGBUS, &handler, &found_by[which]);
}

void set_aside(void)
{
    struct sigaction standard = { .sa_handler = SIG_DFL };

    sigaction(SIGBUS, &standard, &aside);
}

void put_back(void)
{
    sigaction(SIGBUS, &aside, NULL);
}
