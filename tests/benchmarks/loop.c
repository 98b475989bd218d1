/*
 * The loop that everything is compared with: loop FD IOAS ROUNDS PIECES maps so many pages one after the other, in the
 * address space IOAS of the iommufd FD, and unmaps them in that order, ROUNDS times; and prints the nanoseconds. Where it
 * is one page the kernel chooses its address.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "iommufd.h"

#define PAGE 4096
#define IOVA 0x10000000ull

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

int main(int argc, char **argv)
{
    int fd, rounds, pieces;
    uint64_t start, *iovas;
    uint32_t ioas;
    char *memory;

    if (argc != 5)
        return 2;
    fd = atoi(argv[1]);
    ioas = atoi(argv[2]);
    rounds = atoi(argv[3]);
    pieces = atoi(argv[4]);
    memory = mmap(NULL, (size_t)pieces * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    iovas = calloc(pieces, sizeof(*iovas));
    if (memory == MAP_FAILED || !iovas)
        return 1;
    start = now();
    for (int round = 0; round < rounds; round++) {
        for (int piece = 0; piece < pieces; piece++) {
            struct iommu_ioas_map map = {
                .size = sizeof(map),
                .flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE |
                         (pieces > 1 ? IOMMU_IOAS_MAP_FIXED_IOVA : 0),
                .ioas_id = ioas,
                .user_va = (uintptr_t)memory + piece * PAGE,
                .length = PAGE,
                .iova = pieces > 1 ? IOVA + piece * PAGE : 0,
            };

            if (ioctl(fd, IOMMU_IOAS_MAP, &map))
                return 1;
            iovas[piece] = map.iova;
        }
        for (int piece = 0; piece < pieces; piece++) {
            struct iommu_ioas_unmap unmap = {
                .size = sizeof(unmap), .ioas_id = ioas, .iova = iovas[piece], .length = PAGE,
            };

            if (ioctl(fd, IOMMU_IOAS_UNMAP, &unmap))
                return 1;
        }
    }
    printf("%llu\n", (unsigned long long)(now() - start));
    return 0;
}
