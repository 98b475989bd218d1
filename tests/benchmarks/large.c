/*
 * large FD IOAS ROUNDS MEMFD: map and unmap 1 GiB of memory, that of MEMFD, in the address space IOAS of the iommufd FD,
 * ROUNDS times; and print the nanoseconds.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "iommufd.h"

#define SIZE (1ull << 30)

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
    volatile char *memory;

    if (argc != 5)
        return 2;
    fd = atoi(argv[1]);
    rounds = atoi(argv[3]);
    memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[4]), 0);
    if (memory == MAP_FAILED)
        return 1;
    /* In this process's page table as well. */
    for (uint64_t at = 0; at < SIZE; at += 4096)
        memory[at];
    start = now();
    for (int round = 0; round < rounds; round++) {
        struct iommu_ioas_map map = {
            .size = sizeof(map),
            .flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
            .ioas_id = atoi(argv[2]),
            .user_va = (uintptr_t)memory,
            .length = SIZE,
        };
        struct iommu_ioas_unmap unmap = { .size = sizeof(unmap), .ioas_id = map.ioas_id, .length = SIZE };

        if (ioctl(fd, IOMMU_IOAS_MAP, &map))
            return 1;
        unmap.iova = map.iova;
        if (ioctl(fd, IOMMU_IOAS_UNMAP, &unmap))
            return 1;
    }
    printf("%llu\n", (unsigned long long)(now() - start));
    return 0;
}
