/* Objects of an iommufd: C code behind entry.h. */

/* The states of an object or piece: see entry.h. */
enum { GONE, LIVE, LOCKED };

/* Begin to use the object, and return its iommufd's fd: destroy waits for it, so the call cannot hit a reused id. */
static int object_get(struct pyiommufd_object *object)
{
    unsigned int tries = 0, state;
    int fd;

    /* Bounded: the call that wants it may be in this thread, interrupted by the signal handler that runs this. */
    while (LOAD(&object->wanted) && tries < 100)
        back_off(&tries);
    for (;;) {
        ADD(&object->users, 1);
        state = LOAD(&object->state);
        if (state == LIVE)
            break;
        ADD(&object->users, -1);
        /* Also in a forked child, where no other thread finishes what it had begun. */
        if (state == GONE || LOAD(&object->file->fd) < 0)
            return -EBADF;
        back_off(&tries);
    }
    fd = file_get(object->file);
    if (fd < 0)
        ADD(&object->users, -1);
    return fd;
}

/*
 * Take exclusive use: waits for calls in progress, and none begins until the state is set again. 0: it does not exist.
 *
 * Lock order: a call that locks one object and uses another goes by their addresses. A call that uses several in
 * another order, or that locks one for good, holds the iommufd's lock.
 */
static int object_lock(struct pyiommufd_object *object)
{
    unsigned int tries = 0, live;

    for (;;) {
        live = LIVE;
        if (__atomic_compare_exchange_n(&object->state, &live, LOCKED, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            break;
        if (live == GONE || LOAD(&object->file->fd) < 0)
            return 0;
        back_off(&tries);
    }
    while (LOAD(&object->users)) {
        /* A forked child, where no other thread finishes what it had begun. */
        if (LOAD(&object->file->fd) < 0)
            break;
        back_off(&tries);
    }
    return 1;
}

static void object_put(struct pyiommufd_object *object)
{
    file_put(object->file);
    ADD(&object->users, -1);
}

int pyiommufd_make(struct pyiommufd_object *object, unsigned long request, void *command, uint64_t id_at,
                   const struct pyiommufd_id *uses, uint64_t count, struct pyiommufd_file *queue, uint64_t fd_at)
{
    int fd = file_get(object->file), result = 0;
    uint64_t held = 0;

    if (fd < 0)
        return fd;
    /* Any order is safe: a call that has locked an object locks no other, or holds the iommufd's lock, as this caller does. */
    for (; held < count; held++) {
        result = object_get(uses[held].object);
        if (result < 0)
            break;
        memcpy((char *)command + uses[held].at, &uses[held].object->id, sizeof(object->id));
    }
    if (result >= 0)
        result = issue(fd, request, command);
    while (held)
        object_put(uses[--held].object);
    if (result >= 0) {
        memcpy(&object->id, (char *)command + id_at, sizeof(object->id));
        STORE(&object->state, LIVE);
        if (queue) {
            memcpy(&fd, (char *)command + fd_at, sizeof(fd));
            file_set_fd(queue, fd);
        }
    }
    file_put(object->file);
    return result;
}

int pyiommufd_object_ioctl(struct pyiommufd_object *object, unsigned long request, void *command, uint64_t id_at)
{
    int fd = object_get(object), result;

    if (fd < 0)
        return fd;
    memcpy((char *)command + id_at, &object->id, sizeof(object->id));
    result = issue(fd, request, command);
    object_put(object);
    return result;
}

static int destroy(int fd, uint32_t id)
{
    struct iommu_destroy command = { .size = sizeof(command), .id = id };

    return issue(fd, IOMMU_DESTROY, &command);
}

int pyiommufd_destroy(struct pyiommufd_object *object)
{
    int fd, result;

    if (!object_lock(object))
        return 0;
    result = fd = file_get(object->file);
    if (fd >= 0) {
        result = destroy(fd, object->id);
        file_put(object->file);
    }
    STORE(&object->state, result ? LIVE : GONE);
    return result;
}

void pyiommufd_abandon(struct pyiommufd_object *object)
{
    if (object_lock(object))
        STORE(&object->state, GONE);
}

static int64_t ioas_alloc(int fd)
{
    struct iommu_ioas_alloc command = { .size = sizeof(command) };
    int result = issue(fd, IOMMU_IOAS_ALLOC, &command);

    return result ? result : (int64_t)command.out_ioas_id;
}
