/* Values of few levels as codes of 1, 2 or 4 bits; srm_triton/levels.py says what for.

   A level is a pattern of bits, so that any tensor comes back as it was, negative zeros and NaN too. REAL is the unsigned
   integer of a value's size. */

#ifndef REAL

#include "native.h"

#define MOST 16 /* levels */
#define BLOCK 1024 /* values at once */

typedef struct {
    int64_t count, bits, levels; /* of values; of a code; found */
    void *values, *table, *codes;
} Levels;

const int64_t levels_layout[1] = {sizeof(Levels)}; /* for the loader */

INLINE int64_t block_size(const Levels *argument, int64_t start)
{
    return argument->count - start < BLOCK ? argument->count - start : BLOCK;
}

#define REAL uint8_t
#include "levels.c"
#undef REAL
#define REAL uint16_t
#include "levels.c"
#undef REAL
#define REAL uint32_t
#include "levels.c"
#undef REAL
#define REAL uint64_t
#include "levels.c"

#else

/* Whether each value is one of the levels. */
INLINE int TYPED(all_known)(const REAL *restrict values, int64_t width, const REAL *restrict table, int64_t levels)
{
    REAL unknown[BLOCK], any = 0;
    for (int64_t i = 0; i < width; i++)
        unknown[i] = values[i] != table[0];
    for (int64_t k = 1; k < levels; k++)
        for (int64_t i = 0; i < width; i++)
            unknown[i] = unknown[i] & (values[i] != table[k]);
    for (int64_t i = 0; i < width; i++)
        any |= unknown[i];
    return !any;
}

/* Fills the table in the order of appearance; more levels than fit are counted as one more. */
EVERY_VECTOR_WIDTH
static void TYPED(find)(void *given)
{
    Levels *argument = given;
    const REAL *values = argument->values;
    REAL *table = argument->table;
    int64_t levels = 1;
    table[0] = values[0];
    for (int64_t start = 0; start < argument->count && levels <= MOST; start += BLOCK) {
        int64_t width = block_size(argument, start);
        if (TYPED(all_known)(values + start, width, table, levels))
            continue;
        for (int64_t i = start; i < start + width && levels <= MOST; i++) {
            int64_t k = 0;
            while (k < levels && values[i] != table[k])
                k++;
            if (k == levels && levels++ < MOST)
                table[k] = values[i];
        }
    }
    argument->levels = levels;
}

EVERY_VECTOR_WIDTH
static void TYPED(encode)(void *given)
{
    const Levels *argument = given;
    const REAL *values = argument->values, *table = argument->table;
    uint8_t *codes = argument->codes;
    int64_t bits = argument->bits, in_a_byte = 8 / bits;
    for (int64_t start = 0; start < argument->count; start += BLOCK) {
        int64_t width = block_size(argument, start), bytes = (width + in_a_byte - 1) / in_a_byte;
        uint8_t numbers[BLOCK] = {0};
        for (int64_t k = 1; k < argument->levels; k++)
            for (int64_t i = 0; i < width; i++)
                numbers[i] |= values[start + i] == table[k] ? k : 0;
        for (int64_t i = 0; i < bytes; i++) {
            uint8_t code = 0;
            for (int64_t q = 0; q < in_a_byte; q++)
                code |= numbers[i * in_a_byte + q] << (q * bits);
            codes[start / in_a_byte + i] = code;
        }
    }
}

EVERY_VECTOR_WIDTH
static void TYPED(decode)(void *given)
{
    const Levels *argument = given;
    REAL *values = argument->values;
    const REAL *table = argument->table;
    const uint8_t *codes = argument->codes;
    int64_t bits = argument->bits, in_a_byte = 8 / bits, whole = argument->count / 8 * 8;
    REAL change = table[0] ^ table[argument->levels > 1];
    if (bits == 1)
        for (int64_t i = 0; i < whole / 8; i++)
            for (int64_t q = 0; q < 8; q++)
                values[i * 8 + q] = table[0] ^ (change & -(REAL)(codes[i] >> q & 1));
    for (int64_t i = bits == 1 ? whole : 0; i < argument->count; i++)
        values[i] = table[codes[i / in_a_byte] >> (i % in_a_byte * bits) & ((1 << bits) - 1)];
}

void TYPED(levels_find)(Levels *argument, RunParallel *run_parallel, unsigned threads)
{
    run(TYPED(find), argument, run_parallel, threads);
}

void TYPED(levels_encode)(Levels *argument, RunParallel *run_parallel, unsigned threads)
{
    run(TYPED(encode), argument, run_parallel, threads);
}

void TYPED(levels_decode)(Levels *argument, RunParallel *run_parallel, unsigned threads)
{
    run(TYPED(decode), argument, run_parallel, threads);
}

#endif
