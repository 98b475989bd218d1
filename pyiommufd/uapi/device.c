/* Bind, attach and detach, ioeventfds, interrupts: C code behind entry.h. */

int pyiommufd_bind(struct pyiommufd_file *cdev, struct pyiommufd_object *device, struct pyiommufd_file *owner,
                   const void *token)
{
    struct vfio_device_bind_iommufd command = {
        /* Kernels from before the token answer E2BIG for a longer struct only where its tail is not zero. */
        .argsz = sizeof(command),
        .flags = token ? VFIO_DEVICE_BIND_FLAG_TOKEN : 0,
        .token_uuid_ptr = (uintptr_t)token,
    };
    int fd = file_get(cdev), result;

    if (fd < 0)
        return fd;
    result = command.iommufd = file_get(device->file);
    if (result >= 0) {
        result = issue(fd, VFIO_DEVICE_BIND_IOMMUFD, &command);
        file_put(device->file);
    }
    if (!result) {
        int unbound = fd;

        device->id = command.out_devid;
        /* The fd changes hands; unless it is being closed, which waits for this and then unbinds. */
        if (__atomic_compare_exchange_n(&cdev->fd, &unbound, -1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            file_set_fd(owner, fd);
            STORE(&device->state, LIVE);
        } else {
            result = -EBADF;
        }
    }
    file_put(cdev);
    return result;
}

int pyiommufd_attach(struct pyiommufd_file *cdev, struct pyiommufd_object *table, int64_t pasid, uint32_t *group_on,
                     int *attached)
{
    struct vfio_device_attach_iommufd_pt command = {
        /* Without a PASID the struct ends where 6.6 ended it, for the kernels of that time. */
        .argsz = pasid < 0 ? offsetof(struct vfio_device_attach_iommufd_pt, pasid) : sizeof(command),
        .flags = pasid < 0 ? 0 : VFIO_DEVICE_ATTACH_PASID,
        .pasid = pasid < 0 ? 0 : (uint32_t)pasid,
    };
    int result = object_get(table);

    if (result < 0)
        return result;
    command.pt_id = table->id;
    result = pyiommufd_ioctl(cdev, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &command);
    if (!result) {
        *group_on = table->id;
        *attached = 1;
    }
    object_put(table);
    return result;
}

int pyiommufd_detach(struct pyiommufd_file *cdev, int64_t pasid, int *attached)
{
    struct vfio_device_detach_iommufd_pt command = {
        .argsz = pasid < 0 ? offsetof(struct vfio_device_detach_iommufd_pt, pasid) : sizeof(command),
        .flags = pasid < 0 ? 0 : VFIO_DEVICE_DETACH_PASID,
        .pasid = pasid < 0 ? 0 : (uint32_t)pasid,
    };
    int result = pyiommufd_ioctl(cdev, VFIO_DEVICE_DETACH_IOMMUFD_PT, &command);

    if (!result)
        *attached = 0;
    return result;
}

int pyiommufd_ioeventfd(struct pyiommufd_file *cdev, uint64_t offset, uint32_t width, uint64_t value,
                        struct pyiommufd_file *eventfd, int *on)
{
    struct vfio_device_ioeventfd command = {
        .argsz = sizeof(command),
        .flags = width,
        .offset = offset,
        .data = value,
        .fd = eventfd ? file_get(eventfd) : -1,
    };
    int result;

    if (eventfd && command.fd < 0)
        return command.fd;
    result = pyiommufd_ioctl(cdev, VFIO_DEVICE_IOEVENTFD, &command);
    if (!result)
        *on = eventfd != NULL;
    if (eventfd)
        file_put(eventfd);
    return result;
}

int pyiommufd_set_irqs(struct pyiommufd_file *cdev, struct vfio_irq_set *command, struct pyiommufd_file **eventfds,
                       uint64_t count)
{
    uint64_t at;
    int32_t fd;
    int result = 0;

    for (at = 0; at < count; at++) {
        fd = eventfds[at] ? file_get(eventfds[at]) : -1;
        if (eventfds[at] && fd < 0) {
            result = fd;
            break;
        }
        memcpy(command->data + at * sizeof(fd), &fd, sizeof(fd));
    }
    if (!result)
        result = pyiommufd_ioctl(cdev, VFIO_DEVICE_SET_IRQS, command);
    while (at--)
        if (eventfds[at])
            file_put(eventfds[at]);
    return result;
}

int pyiommufd_feature(struct pyiommufd_file *cdev, struct vfio_device_feature *command, int64_t fd_at,
                      struct pyiommufd_file *given, struct pyiommufd_file *made)
{
    int32_t fd = -1;
    int result;

    if (given) {
        fd = file_get(given);
        if (fd < 0)
            return fd;
        memcpy(command->data + fd_at, &fd, sizeof(fd));
    }
    result = pyiommufd_ioctl(cdev, VFIO_DEVICE_FEATURE, command);
    if (given)
        file_put(given);
    if (result >= 0 && made) {
        fd = result;
        if (fd_at >= 0)
            memcpy(&fd, command->data + fd_at, sizeof(fd));
        if (fd >= 0)
            file_set_fd(made, fd);
    }
    return result;
}

int pyiommufd_gfx_dma_buf(struct pyiommufd_file *cdev, uint32_t id, struct pyiommufd_file *made)
{
    int result = pyiommufd_ioctl(cdev, VFIO_DEVICE_GET_GFX_DMABUF, &id);

    if (result < 0)
        return result;
    fcntl(result, F_SETFD, FD_CLOEXEC); /* drivers leave it to programs that are executed */
    return file_set_fd(made, result);
}
