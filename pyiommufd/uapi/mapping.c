/* Mappings: C code behind entry.h. */

/*
 * A piece is locked before it is unmapped on its own, so that two threads unmap it once and the second one waits
 * until it is gone. A call on one piece uses its address space (see `object_get`). A call on many pieces, which depends
 * on the caller's list of what is mapped, takes exclusive use of the address space (see `object_lock`).
 */
static int piece_lock(struct pyiommufd_piece *piece)
{
    unsigned int tries = 0;
    uint64_t state;

    for (;;) {
        state = LIVE;
        if (__atomic_compare_exchange_n(&piece->state, &state, LOCKED, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return 1;
        if (state == GONE)
            return 0;
        back_off(&tries);
    }
}

static void mapped(struct pyiommufd_piece *piece, struct pyiommufd_object *ioas, uint64_t length, uint64_t iova)
{
    piece->ioas = ioas;
    piece->length = length;
    piece->iova = iova;
    STORE(&piece->state, LIVE);
    ADD(&ioas->changes, 1);
}

static int map(int fd, struct pyiommufd_object *ioas, struct pyiommufd_piece *piece, uint32_t flags,
               const void *user_va, uint64_t length, uint64_t iova)
{
    /*
     * The kernel accepts a piece of a page as long as no device is attached, and fails the later attach for
     * it. Refused here, where the address is known without an object for it.
     */
    static uint64_t in_page;
    struct iommu_ioas_map command = {
        .size = sizeof(command),
        .flags = flags,
        .ioas_id = ioas->id,
        .user_va = (uintptr_t)user_va,
        .length = length,
        .iova = iova,
    };
    int result;

    if (!in_page)
        in_page = (uint64_t)sysconf(_SC_PAGESIZE) - 1;
    if (((uintptr_t)user_va | length | iova) & in_page || !length)
        return 1;
    result = issue(fd, IOMMU_IOAS_MAP, &command);
    if (!result)
        mapped(piece, ioas, length, command.iova);
    return result;
}

/* 1: address, length or iova is not on page boundaries, or the length is 0. */
static int ioas_map(struct pyiommufd_object *ioas, struct pyiommufd_piece *piece, uint32_t flags, const void *user_va,
                    uint64_t length, uint64_t iova)
{
    int fd = object_get(ioas), result;

    if (fd < 0)
        return fd;
    result = map(fd, ioas, piece, flags, user_va, length, iova);
    object_put(ioas);
    return result;
}

static int ioas_map_file(struct pyiommufd_object *ioas, struct pyiommufd_piece *piece, uint32_t flags, int file,
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
    int fd = object_get(ioas), result;

    if (fd < 0)
        return fd;
    result = issue(fd, IOMMU_IOAS_MAP_FILE, &command);
    if (!result)
        mapped(piece, ioas, length, command.iova);
    object_put(ioas);
    return result;
}

static int copy_range(int fd, uint32_t dst_ioas_id, uint32_t flags, uint32_t src_ioas_id, uint64_t src_iova,
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
    int result = issue(fd, IOMMU_IOAS_COPY, &command);

    if (!result)
        *dst_iova = command.dst_iova;
    return result;
}

/* Lock the source, which the caller sets back to LIVE, and use the target. Returns the fd or a negative errno. */
static int lock_and_get(struct pyiommufd_object *source, struct pyiommufd_object *ioas)
{
    int fd = 0;

    if (ioas < source)
        fd = object_get(ioas);
    if (fd < 0)
        return fd;
    if (!object_lock(source)) {
        if (ioas < source)
            object_put(ioas);
        return -EBADF;
    }
    if (ioas == source)
        fd = file_get(source->file);
    else if (ioas > source)
        fd = object_get(ioas);
    if (fd < 0)
        STORE(&source->state, LIVE);
    return fd;
}

int pyiommufd_ioas_copy(struct pyiommufd_object *ioas, struct pyiommufd_piece *pieces, uint64_t count, uint32_t flags,
                        struct pyiommufd_object *source, uint64_t src_iova, uint64_t length, uint64_t dst_iova,
                        unsigned int changes)
{
    int fd = lock_and_get(source, ioas), result = -EAGAIN;
    uint64_t at;

    if (fd < 0)
        return fd;
    if (LOAD(&source->changes) == changes)
        result = copy_range(fd, ioas->id, flags, source->id, src_iova, length, &dst_iova);
    for (at = 0; !result && at < count; at++)
        mapped(&pieces[at], ioas, pieces[at].length, dst_iova + pieces[at].offset);
    STORE(&source->state, LIVE);
    if (ioas == source)
        file_put(source->file);
    else
        object_put(ioas);
    return result;
}

int pyiommufd_ioas_map_many(struct pyiommufd_object *ioas, struct pyiommufd_piece *pieces, uint64_t count,
                            uint32_t flags, const void *memory, uint64_t *done)
{
    int fd = object_get(ioas), result = 0;

    if (fd < 0)
        return fd;
    for (*done = 0; *done < count; ++*done) {
        struct pyiommufd_piece *piece = &pieces[*done];
        int fixed = piece->iova != UINT64_MAX;

        result = map(fd, ioas, piece, fixed ? flags | IOMMU_IOAS_MAP_FIXED_IOVA : flags,
                     (const char *)memory + piece->offset, piece->length, fixed ? piece->iova : 0);
        if (result)
            break;
    }
    object_put(ioas);
    return result;
}

static int unmap(int fd, const struct pyiommufd_object *ioas, uint64_t iova, uint64_t *length)
{
    struct iommu_ioas_unmap command = {
        .size = sizeof(command),
        .ioas_id = ioas->id,
        .iova = iova,
        .length = *length,
    };
    int result = issue(fd, IOMMU_IOAS_UNMAP, &command);

    if (!result)
        *length = command.length;
    return result;
}

/* Of a piece whose address space is in use by the caller. */
static int unmap_piece(int fd, struct pyiommufd_piece *piece)
{
    uint64_t length = piece->length;
    int result;

    if (!piece_lock(piece))
        return 0;
    result = unmap(fd, piece->ioas, piece->iova, &length);
    /* A process that shares this iommufd has unmapped it; it is gone, as was wanted. */
    if (result == -ENOENT)
        result = 0;
    STORE(&piece->state, result ? LIVE : GONE);
    /* Counted after the state change: a call whose list of pieces is older than that gets EAGAIN. */
    ADD(&piece->ioas->changes, 1);
    return result;
}

int pyiommufd_ioas_unmap_many(struct pyiommufd_piece *pieces, uint64_t count)
{
    struct pyiommufd_object *ioas;
    int fd, result = 0;
    uint64_t at = 0;

    while (at < count && LOAD(&pieces[at].state) == GONE)
        at++;
    if (at == count)
        return 0;
    ioas = pieces[at].ioas;
    fd = object_get(ioas);
    if (fd < 0)
        return fd;
    for (; !result && at < count; at++)
        result = unmap_piece(fd, &pieces[at]);
    object_put(ioas);
    return result;
}

int pyiommufd_any_mapped(const struct pyiommufd_piece *pieces, uint64_t count)
{
    for (uint64_t at = 0; at < count; at++)
        if (LOAD(&pieces[at].state) != GONE)
            return 1;
    return 0;
}

uint64_t pyiommufd_mapped_within(const struct pyiommufd_piece *pieces, uint64_t count, uint64_t iova, uint64_t length)
{
    const uint64_t last = iova + length - 1;
    uint64_t bytes = 0;

    for (uint64_t at = 0; at < count; at++) {
        const struct pyiommufd_piece *piece = &pieces[at];
        uint64_t start, end;

        /* First: another thread that maps it writes where it is, and only then that it is mapped. */
        if (LOAD(&piece->state) != LIVE)
            continue;
        start = LOAD(&piece->iova);
        end = start + LOAD(&piece->length) - 1;
        if (start <= last && end >= iova)
            bytes += (end < last ? end : last) - (start > iova ? start : iova) + 1;
    }
    return bytes;
}

static int copy_in_place(int fd, uint32_t dst_ioas_id, uint32_t src_ioas_id, uint64_t iova, uint64_t length)
{
    uint64_t dst_iova = iova;

    /* READABLE is allowed for a copy of any mapping. */
    return copy_range(fd, dst_ioas_id, IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE, src_ioas_id, iova, length,
                      &dst_iova);
}

int pyiommufd_ioas_unmap_range(struct pyiommufd_object *ioas, uint64_t iova, uint64_t length,
                               struct pyiommufd_piece **pieces, uint64_t count, unsigned int changes,
                               uint64_t *unmapped)
{
    /* The kernel takes length UINT64_MAX for "everything", though such a range does not include the last address. */
    const uint64_t last = length == UINT64_MAX ? UINT64_MAX : iova + length - 1;
    int64_t scratch = -1;
    int fd, result = -EAGAIN;
    uint64_t at;

    if (!object_lock(ioas))
        return -EBADF;
    fd = file_get(ioas->file);
    if (fd < 0) {
        STORE(&ioas->state, LIVE);
        return fd;
    }
    if (LOAD(&ioas->changes) == changes) {
        *unmapped = length;
        result = unmap(fd, ioas, iova, unmapped);
        /* The kernel unmaps upwards and stops at a mapping that is cut or in use: test which ones are gone. */
        if (result)
            scratch = ioas_alloc(fd);
        for (at = 0; at < count; at++) {
            struct pyiommufd_piece *piece = pieces[at];

            if (piece->iova < iova || piece->iova + piece->length - 1 > last)
                continue;
            if (!result ||
                (scratch >= 0 && copy_in_place(fd, scratch, ioas->id, piece->iova, piece->length) == -ENOENT))
                STORE(&piece->state, GONE);
        }
        if (scratch >= 0)
            destroy(fd, scratch);
        ADD(&ioas->changes, 1); /* also where it failed, having unmapped a part */
    }
    STORE(&ioas->state, LIVE);
    file_put(ioas->file);
    return result;
}

int pyiommufd_ioas_unmap_left(struct pyiommufd_object *ioas, struct pyiommufd_piece *piece)
{
    uint64_t length = piece->length;
    int fd, result;

    if (LOAD(&piece->state) == GONE)
        return 0;
    fd = file_get(ioas->file);
    if (fd < 0)
        return fd;
    result = unmap(fd, ioas, piece->iova, &length);
    /* EBADF: somebody else has closed the fd; what it was of goes with it. */
    if (result == -ENOENT || result == -EBADF)
        result = 0;
    if (!result)
        STORE(&piece->state, GONE);
    file_put(ioas->file);
    return result;
}

/*
 * No request asks what is mapped, but a copy looks at its source first: it is refused with ENOENT for a hole there. Only
 * then does it look at where it is to go; at the end of the addresses it is refused again, whatever is mapped.
 */
static int refused_copy(int fd, uint32_t dst_ioas_id, uint32_t src_ioas_id, uint64_t iova, uint64_t length)
{
    /* Not aligned, unless to bytes or pairs of them; and with three bytes or more past the end in any case. */
    uint64_t dst_iova = UINT64_MAX - 1;

    return copy_range(fd, dst_ioas_id, IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE, src_ioas_id, iova, length,
                      &dst_iova);
}

/* 1: all of a range is mapped. 0: it may not be. Of the pieces of the range nothing is copied but the list of them. */
static int no_hole(int fd, uint32_t ioas_id, uint64_t iova, uint64_t length)
{
    static int source_first; /* -1: this kernel looks in another order, so that its refusal says nothing */
    int known = LOAD(&source_first), result;

    /* A length or an address that no copy has, or that does not fit, is refused before the source is looked at. */
    if (length < 3 || length == UINT64_MAX || iova == UINT64_MAX || length - 1 > UINT64_MAX - iova)
        return 0;
    if (!known) {
        const int64_t empty = ioas_alloc(fd);

        if (empty < 0)
            return 0;
        known = refused_copy(fd, ioas_id, empty, iova, length) == -ENOENT ? 1 : -1;
        destroy(fd, empty);
        STORE(&source_first, known);
    }
    if (known < 0)
        return 0;
    result = refused_copy(fd, ioas_id, ioas_id, iova, length);
    return result == -EINVAL || result == -EOVERFLOW;
}

/*
 * Where the hole is: copies of ever smaller parts, to an address space without devices, where they pin and account
 * nothing. EAGAIN: what is mapped has changed meanwhile.
 */
static int first_hole(int fd, uint32_t ioas_id, uint64_t iova, uint64_t length, uint64_t *hole)
{
    int64_t scratch = ioas_alloc(fd);
    int result;

    if (scratch < 0)
        return (int)scratch;
    result = copy_in_place(fd, scratch, ioas_id, iova, length);
    /* EOVERFLOW: the range is too long for a copy, and for a mapping. Any other refusal is not for a hole. */
    while (length > 1 && (result == -ENOENT || result == -EOVERFLOW)) {
        /* Up to iova all is mapped, and copied; within the length from there on something is not. */
        const uint64_t half = length / 2;

        result = copy_in_place(fd, scratch, ioas_id, iova, half);
        if (result) {
            length = half;
        } else {
            iova += half;
            length -= half;
            /* The rest has not been tried by itself: its last byte is. */
            result = length > 1 ? -ENOENT : copy_in_place(fd, scratch, ioas_id, iova, 1);
            if (!result)
                result = -EAGAIN;
        }
    }
    if (result == -ENOENT) {
        *hole = iova;
        result = 1;
    }
    destroy(fd, scratch);
    return result;
}

int pyiommufd_ioas_first_hole(struct pyiommufd_object *ioas, uint64_t iova, uint64_t length, uint64_t *hole)
{
    int fd = object_get(ioas), result;

    if (fd < 0)
        return fd;
    if (no_hole(fd, ioas->id, iova, length)) {
        object_put(ioas);
        return 0;
    }
    do
        result = first_hole(fd, ioas->id, iova, length, hole);
    while (result == -EAGAIN);
    object_put(ioas);
    return result;
}

static int try_page_table(int fd, uint32_t device_id, uint32_t ioas_id)
{
    struct iommu_hwpt_alloc command = { .size = sizeof(command), .dev_id = device_id, .pt_id = ioas_id };
    int result = issue(fd, IOMMU_HWPT_ALLOC, &command);

    if (!result)
        destroy(fd, command.out_hwpt_id);
    return result;
}

int pyiommufd_try_page_table(struct pyiommufd_object *device, struct pyiommufd_object *ioas, uint64_t iova,
                             uint64_t length, uint64_t dst_iova)
{
    int fd = object_get(device), result;
    int64_t scratch;

    if (fd < 0)
        return fd;
    result = object_get(ioas);
    if (result < 0) {
        object_put(device);
        return result;
    }
    if (!length) {
        result = try_page_table(fd, device->id, ioas->id);
    } else if ((scratch = ioas_alloc(fd)) < 0) {
        result = (int)scratch;
    } else {
        /* READABLE is enough: the original map decided whether the memory is pinned for writing. */
        result = copy_range(fd, scratch, IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE, ioas->id, iova, length,
                            &dst_iova);
        if (!result)
            result = try_page_table(fd, device->id, scratch);
        destroy(fd, scratch);
    }
    object_put(ioas);
    object_put(device);
    return result;
}
