/* Objects of an iommufd: C code behind entry.h. */

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
        /* In a forked child, too, where nobody goes on with what another thread had begun. */
        if (state == GONE || LOAD(&object->file->fd) < 0) {
            return -EBADF;
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
        return fd;
    /* First, so that nothing is left to fail once the kernel has made it. */
    if (queue && (queue->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) {
        result = -errno;
        let_go(object->file);
        return result;
    }
    result = (int)with_reason(ioctl(fd, request, command));
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

    return (int)with_reason(ioctl(fd, IOMMU_DESTROY, &command));
}

/* One at a time for each iommufd: a copy uses two objects, and each might wait for the end of the other. */
int pyiommufd_destroy(struct pyiommufd_object *object)
{
    unsigned int live = LIVE, looks = 0;
    int fd, result;

    if (!__atomic_compare_exchange_n(&object->state, &live, ENDING, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return 0;
    while (LOAD(&object->users))
        look_again(&looks);
    result = fd = hold(object->file);
    if (fd >= 0) {
        result = destroy(fd, object->id);
        let_go(object->file);
    }
    STORE(&object->state, result ? LIVE : GONE);
    return result;
}

void pyiommufd_abandon(struct pyiommufd_object *object)
{
    unsigned int live = LIVE, looks = 0;

    if (!__atomic_compare_exchange_n(&object->state, &live, ENDING, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return;
    while (LOAD(&object->users))
        look_again(&looks);
    STORE(&object->state, GONE);
}

static int64_t ioas_alloc(int fd)
{
    struct iommu_ioas_alloc command = { .size = sizeof(command) };

    return ioctl(fd, IOMMU_IOAS_ALLOC, &command) ? -errno : (int64_t)command.out_ioas_id;
}
