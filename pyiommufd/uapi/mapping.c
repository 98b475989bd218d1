/* Mappings: C code behind entry.h. */

/*
 * Mappings.
 *
 * Each piece is claimed before it is unmapped: two threads that unmap it do so once, and the one that comes second
 * waits until it is gone.
 */
static int claim(struct pyiommufd_piece *piece)
{
    unsigned int looks = 0;
    uint64_t state;

    for (;;) {
        state = LIVE;
        if (__atomic_compare_exchange_n(&piece->state, &state, ENDING, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return 1;
        if (state == GONE)
            return 0;
        look_again(&looks);
    }
}

static void mapped(struct pyiommufd_piece *piece, struct pyiommufd_object *ioas, uint64_t length, uint64_t iova)
{
    piece->ioas = ioas;
    piece->length = length;
    piece->iova = iova;
    STORE(&piece->state, LIVE);
}

static int map(int fd, struct pyiommufd_object *ioas, struct pyiommufd_piece *piece, uint32_t flags,
               const void *user_va, uint64_t length, uint64_t iova)
{
    /*
     * The kernel accepts a piece of a page as long as no device is attached, and fails the later attach for
     * it. Refused here, where the address is known without an object for it.
     */
    const uint64_t in_page = (uint64_t)sysconf(_SC_PAGESIZE) - 1;
    struct iommu_ioas_map command = {
        .size = sizeof(command),
        .flags = flags,
        .ioas_id = ioas->id,
        .user_va = (uintptr_t)user_va,
        .length = length,
        .iova = iova,
    };

    if (((uintptr_t)user_va | length | iova) & in_page || !length)
        return 1;
    if (ioctl(fd, IOMMU_IOAS_MAP, &command))
        return -errno;
    mapped(piece, ioas, length, command.iova);
    return 0;
}

int pyiommufd_ioas_map(struct pyiommufd_object *ioas, struct pyiommufd_piece *piece, uint32_t flags,
                       const void *user_va, uint64_t length, uint64_t iova)
{
    int fd = use(ioas), result;

    if (fd < 0)
        return fd;
    result = map(fd, ioas, piece, flags, user_va, length, iova);
    used(ioas);
    return result;
}

int pyiommufd_ioas_map_file(struct pyiommufd_object *ioas, struct pyiommufd_piece *piece, uint32_t flags, int file,
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
    int fd = use(ioas), result;

    if (fd < 0)
        return fd;
    result = (int)with_reason(ioctl(fd, IOMMU_IOAS_MAP_FILE, &command));
    if (!result)
        mapped(piece, ioas, length, command.iova);
    used(ioas);
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

    if (ioctl(fd, IOMMU_IOAS_COPY, &command))
        return -errno;
    *dst_iova = command.dst_iova;
    return 0;
}

int pyiommufd_ioas_copy(struct pyiommufd_object *ioas, struct pyiommufd_piece *pieces, uint64_t count, uint32_t flags,
                        struct pyiommufd_object *source, uint64_t src_iova, uint64_t length, uint64_t dst_iova)
{
    int fd = use(ioas), result;
    uint64_t at;

    if (fd < 0)
        return fd;
    /* Not twice: in between its destroy may begin to wait for the first, and the second for that. */
    result = source == ioas ? 0 : use(source);
    if (result >= 0) {
        result = copy_range(fd, ioas->id, flags, source->id, src_iova, length, &dst_iova);
        for (at = 0; !result && at < count; at++)
            mapped(&pieces[at], ioas, pieces[at].length, dst_iova + pieces[at].offset);
        if (source != ioas)
            used(source);
    }
    used(ioas);
    return result;
}

int pyiommufd_ioas_map_many(struct pyiommufd_object *ioas, struct pyiommufd_piece *pieces, uint64_t count,
                            uint32_t flags, const void *memory, uint64_t *done)
{
    int fd = use(ioas), result = 0;

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
    used(ioas);
    return result;
}

static int unmap(int fd, struct pyiommufd_object *ioas, uint64_t iova, uint64_t *length)
{
    struct iommu_ioas_unmap command = {
        .size = sizeof(command),
        .ioas_id = ioas->id,
        .iova = iova,
        .length = *length,
    };
    int result;

    result = (int)with_reason(ioctl(fd, IOMMU_IOAS_UNMAP, &command));
    /* Also where it failed, having unmapped a part. Not before: what is found to be mapped meanwhile may be gone. */
    ADD(&ioas->unmaps, 1);
    if (!result)
        *length = command.length;
    return result;
}

int pyiommufd_ioas_unmap(struct pyiommufd_piece *piece)
{
    uint64_t length = piece->length;
    int fd, result;

    if (LOAD(&piece->state) == GONE)
        return 0;
    fd = use(piece->ioas);
    if (fd < 0)
        return fd;
    result = 0;
    if (claim(piece)) {
        result = unmap(fd, piece->ioas, piece->iova, &length);
        /* A process that shares this iommufd has unmapped it; it is gone, as was wanted. */
        if (result == -ENOENT)
            result = 0;
        STORE(&piece->state, result ? LIVE : GONE);
    }
    used(piece->ioas);
    return result;
}

int pyiommufd_ioas_unmap_many(struct pyiommufd_piece *pieces, uint64_t count)
{
    int result = 0;

    for (uint64_t at = 0; !result && at < count; at++)
        result = pyiommufd_ioas_unmap(&pieces[at]);
    return result;
}

static int copy_in_place(int fd, uint32_t dst_ioas_id, uint32_t src_ioas_id, uint64_t iova, uint64_t length)
{
    uint64_t dst_iova = iova;

    /* Readable is what a copy of anything may be. */
    return copy_range(fd, dst_ioas_id, IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE, src_ioas_id, iova, length,
                      &dst_iova);
}

/* By their place in memory: an order in which several threads can claim pieces without waiting in a circle. */
static int in_memory(const void *one, const void *other)
{
    const uintptr_t a = (uintptr_t)*(struct pyiommufd_piece *const *)one;
    const uintptr_t b = (uintptr_t)*(struct pyiommufd_piece *const *)other;

    return (a > b) - (a < b);
}

int pyiommufd_ioas_unmap_range(struct pyiommufd_object *ioas, uint64_t iova, uint64_t length,
                               struct pyiommufd_piece **pieces, uint64_t count, uint64_t *unmapped)
{
    int fd = use(ioas), result;
    /* The kernel takes the longest range for the whole space, whose last address it does not include. */
    const uint64_t last = length == UINT64_MAX ? UINT64_MAX : iova + length - 1;
    int64_t scratch = -1;
    uint64_t at;

    if (fd < 0)
        return fd;
    qsort(pieces, count, sizeof(*pieces), in_memory);
    for (at = 0; at < count; at++)
        if (pieces[at]->iova < iova || pieces[at]->iova + pieces[at]->length - 1 > last || !claim(pieces[at]))
            pieces[at] = NULL;
    *unmapped = length;
    result = unmap(fd, ioas, iova, unmapped);
    /* It goes upwards, and stops where a mapping is cut or in use: whether each is gone is asked then. */
    if (result)
        scratch = ioas_alloc(fd);
    for (at = 0; at < count; at++)
        if (pieces[at]) {
            const struct pyiommufd_piece *piece = pieces[at];
            int gone = !result || (scratch >= 0 && copy_in_place(fd, scratch, ioas->id, piece->iova,
                                                                 piece->length) == -ENOENT);

            STORE(&pieces[at]->state, gone ? GONE : LIVE);
        }
    if (scratch >= 0)
        destroy(fd, scratch);
    used(ioas);
    return result;
}

int pyiommufd_ioas_unmap_left(struct pyiommufd_object *ioas, struct pyiommufd_piece *piece)
{
    uint64_t length = piece->length;
    int fd, result;

    if (LOAD(&piece->state) == GONE)
        return 0;
    fd = hold(ioas->file);
    if (fd < 0)
        return fd;
    result = unmap(fd, ioas, piece->iova, &length);
    /* EBADF: somebody else has closed the fd; what it was of goes with it. */
    if (result == -ENOENT || result == -EBADF)
        result = 0;
    if (!result)
        STORE(&piece->state, GONE);
    let_go(ioas->file);
    return result;
}

/*
 * No request asks what is mapped, but a copy is refused for a hole in its source. The copy is to an address space
 * without devices, where it pins and accounts nothing.
 */
int pyiommufd_ioas_first_hole(struct pyiommufd_file *iommufd, uint32_t ioas_id, uint64_t iova, uint64_t length,
                              uint64_t *hole)
{
    int fd = hold(iommufd), result;
    int64_t scratch;

    if (fd < 0)
        return fd;
    scratch = ioas_alloc(fd);
    result = scratch < 0 ? (int)scratch : copy_in_place(fd, scratch, ioas_id, iova, length);
    /* EOVERFLOW: the range is too long for a copy, and for a mapping. */
    if (result == -ENOENT || result == -EOVERFLOW) {
        /* Up to iova all is mapped, and copied; within the length from there on something is not. */
        while (length > 1) {
            uint64_t half = length / 2;

            if (copy_in_place(fd, scratch, ioas_id, iova, half)) {
                length = half;
            } else {
                iova += half;
                length -= half;
            }
        }
        *hole = iova;
        result = 1;
    }
    if (scratch >= 0)
        destroy(fd, scratch);
    let_go(iommufd);
    return result;
}

static int try_page_table(int fd, uint32_t device_id, uint32_t ioas_id)
{
    struct iommu_hwpt_alloc command = { .size = sizeof(command), .dev_id = device_id, .pt_id = ioas_id };

    if (ioctl(fd, IOMMU_HWPT_ALLOC, &command))
        return -errno;
    destroy(fd, command.out_hwpt_id);
    return 0;
}

int pyiommufd_try_page_table(struct pyiommufd_file *iommufd, uint32_t device_id, uint32_t ioas_id, uint64_t iova,
                             uint64_t length, uint64_t dst_iova)
{
    int fd = hold(iommufd), result;
    int64_t scratch;

    if (fd < 0)
        return fd;
    if (!length) {
        result = try_page_table(fd, device_id, ioas_id);
    } else if ((scratch = ioas_alloc(fd)) < 0) {
        result = (int)scratch;
    } else {
        /* Readable is enough: whether the memory is pinned for writing was said by the first map of it. */
        result = copy_range(fd, scratch, IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE, ioas_id, iova, length,
                            &dst_iova);
        if (!result)
            result = try_page_table(fd, device_id, scratch);
        destroy(fd, scratch);
    }
    let_go(iommufd);
    return result;
}
