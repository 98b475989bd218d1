/* C entry points of pyiommufd._uapi for windows on device regions; results and errors as said in entry.h. */

/* A mapped part of a device region; see window.c for the guard against SIGBUS. */
struct pyiommufd_window;
struct pyiommufd_window *pyiommufd_window_new(void);
int pyiommufd_window_map(struct pyiommufd_window *window, int fd, uint64_t offset, uint64_t length, int readable,
                         int writeable);
int pyiommufd_window_unmap(struct pyiommufd_window *window);
void pyiommufd_window_free(struct pyiommufd_window *window);
uint64_t pyiommufd_window_read(struct pyiommufd_window *window, uint64_t offset, unsigned int width);
int pyiommufd_window_write(struct pyiommufd_window *window, uint64_t offset, unsigned int width,
                           uint64_t value);
