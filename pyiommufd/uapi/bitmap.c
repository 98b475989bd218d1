/* Bitmaps of dirty pages: C code behind entry.h. */

uint64_t pyiommufd_runs(const uint64_t *words, uint64_t count, uint64_t from, uint64_t *runs, uint64_t room)
{
    uint64_t found = 0, at = from / 64, word;

    if (at >= count)
        return 0;
    word = words[at] & (UINT64_MAX << from % 64);
    while (found < room) {
        while (!word) {
            if (++at == count)
                return found;
            word = words[at];
        }
        runs[2 * found] = 64 * at + __builtin_ctzll(word);
        /* The end is the first bit that is not set: those below the run's first do not count. */
        word = ~(word | (word - 1));
        while (!word && ++at < count)
            word = ~words[at];
        if (at == count) {
            runs[2 * found++ + 1] = 64 * count - 1;
            return found;
        }
        runs[2 * found++ + 1] = 64 * at + __builtin_ctzll(word) - 1;
        word = words[at] & (UINT64_MAX << __builtin_ctzll(word));
    }
    return found;
}
