/*
 * What `HWPT.dirty_bitmap` is compared with: dirty FD HWPT IOVA LENGTH ROUNDS SCAN reads the dirty pages of 4 KiB of a
 * page table so many times, without clearing them; with SCAN also turns each bitmap into pairs of iova and length; and
 * prints the nanoseconds of the quickest time, and how many pairs there were.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>

#include "iommufd.h"

#define PAGE 4096ull

struct range {
    uint64_t iova, length;
};

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* By whole words where nothing was written to, else from one edge to the next. */
static size_t scan(const uint64_t *words, size_t count, uint64_t iova, struct range *ranges)
{
    size_t found = 0;
    uint64_t start = 0;
    int in = 0;

    for (size_t at = 0; at < count; at++) {
        const uint64_t word = words[at];
        int bit = 0;

        if (word == (in ? UINT64_MAX : 0))
            continue;
        while (bit < 64) {
            const uint64_t rest = (in ? ~word : word) >> bit;

            if (!rest)
                break;
            bit += __builtin_ctzll(rest);
            if (in)
                ranges[found++] = (struct range){ iova + start * PAGE, (64 * at + bit - start) * PAGE };
            else
                start = 64 * at + bit;
            in = !in;
        }
    }
    if (in)
        ranges[found++] = (struct range){ iova + start * PAGE, (64 * count - start) * PAGE };
    return found;
}

int main(int argc, char **argv)
{
    uint64_t iova, length, least = UINT64_MAX;
    size_t words, found = 0;
    struct range *ranges;
    int fd, rounds;

    if (argc != 7)
        return 2;
    fd = atoi(argv[1]);
    iova = strtoull(argv[3], NULL, 0);
    length = strtoull(argv[4], NULL, 0);
    rounds = atoi(argv[5]);
    words = (length / PAGE + 63) / 64;
    ranges = malloc(32 * words * sizeof(*ranges));
    while (rounds--) {
        const uint64_t start = now();
        uint64_t *bitmap = calloc(words, sizeof(*bitmap)), took;
        struct iommu_hwpt_get_dirty_bitmap command = {
            .size = sizeof(command),
            .hwpt_id = atoi(argv[2]),
            .flags = IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
            .iova = iova,
            .length = length,
            .page_size = PAGE,
            .data = (uintptr_t)bitmap,
        };

        if (ioctl(fd, IOMMU_HWPT_GET_DIRTY_BITMAP, &command))
            return 1;
        if (atoi(argv[6]))
            found = scan(bitmap, words, iova, ranges);
        free(bitmap);
        took = now() - start;
        if (took < least)
            least = took;
    }
    printf("%llu %zu\n", (unsigned long long)least, found);
    return 0;
}
