/* C entry points of pyiommufd._uapi for windows on device regions; results and errors as said in entry.h. */

/*
 * A mapped part of a device region. It is made without a mapping, mapped once, and unmapped once, by whoever is
 * first: what is called later or meanwhile finds that out from the window itself. See window.c for the guard against
 * SIGBUS.
 */
struct pyiommufd_window;
struct pyiommufd_window *pyiommufd_window_new(void);
int pyiommufd_window_map(struct pyiommufd_window *window, struct pyiommufd_file *file, uint64_t offset, uint64_t length,
                         int readable, int writeable);
int pyiommufd_window_unmap(struct pyiommufd_window *window);
/* In a forked child, which does not have the mapping. */
void pyiommufd_window_forget(struct pyiommufd_window *window);
int pyiommufd_window_mapped(struct pyiommufd_window *window);
void pyiommufd_window_free(struct pyiommufd_window *window);

/*
 * Many: of 8 bytes where the offset is a multiple of 8, of 4, 2 and 1 before and after. done: how many bytes were moved
 * before the device did not answer (EFAULT).
 */
int pyiommufd_window_copy_out(struct pyiommufd_window *window, uint64_t offset, void *memory, uint64_t length,
                              uint64_t *done);
int pyiommufd_window_copy_in(struct pyiommufd_window *window, uint64_t offset, const void *memory, uint64_t length,
                             uint64_t *done);
