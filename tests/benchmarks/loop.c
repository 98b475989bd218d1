/*
 * The loop that everything is compared with: loop FD IOAS ROUNDS maps and unmaps one page ROUNDS times in the
 * address space IOAS of the iommufd FD, and prints the nanoseconds.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "iommufd.h"

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

int main(int argc, char **argv)
{
    int fd, rounds;
    uint64_t start;
    void *page;

    if (argc != 4)
        return 2;
    fd = atoi(argv[1]);
    rounds = atoi(argv[3]);
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return 1;
    start = now();
    for (int round = 0; round < rounds; round++) {
        struct iommu_ioas_map map = {
            .size = sizeof(map),
            .flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
            .ioas_id = atoi(argv[2]),
            .user_va = (uintptr_t)page,
            .length = 4096,
        };
        struct iommu_ioas_unmap unmap = { .size = sizeof(unmap), .ioas_id = map.ioas_id, .length = 4096 };

        if (ioctl(fd, IOMMU_IOAS_MAP, &map))
            return 1;
        unmap.iova = map.iova;
        if (ioctl(fd, IOMMU_IOAS_UNMAP, &unmap))
            return 1;
    }
    printf("%llu\n", (unsigned long long)(now() - start));
    return 0;
}
