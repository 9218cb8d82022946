/* The product of inputs that are mostly 0 with a weight: sums of the weight's rows, one row for each input, that inputs
   other than 0 choose; srm_triton/ops/gather_linear.py says when it pays.

   Each sum begins with the bias and takes the rows in order, whatever the tiles. Workers take tiles, samples times columns,
   from a counter: of a block of inputs, they list what is not 0 for all samples of the tile, and then add up a panel of
   the block's rows at a time, which stays in the second-level cache. Rows are padded to whole panels. */

#ifndef REAL

#include "half.h"

#define PANEL 64   /* columns that are added up in registers */
#define BLOCK 1024 /* inputs */
#define SAMPLES 128
#define AHEAD 8 /* rows that are fetched before their turn */

typedef struct {
    int64_t samples, inputs, outputs, row; /* from row to row of the weight */
    int64_t columns; /* of a tile, whole panels */
    int64_t terms;   /* that a worker has room for */
    int64_t storage; /* of the inputs: AS_REAL, half precision or AS_BYTE */
    const void *x, *weight, *bias;
    void *results, *scratch; /* of each worker, its terms */
    atomic_llong tiles_taken, workers;
} Gather;

const int64_t gather_linear_layout[4] = {sizeof(Gather), PANEL, BLOCK, SAMPLES}; /* for the loader */

typedef struct {
    int64_t size, count; /* bytes of a value; values, then how many are not 0 */
    const void *values;
} Count;

#define COUNT(type, sign)                                              \
    for (int64_t start = 0; start < count->count; start += 1 << 14) {  \
        uint32_t found = 0;                                            \
        int64_t end = start + (1 << 14);                               \
        end = end < count->count ? end : count->count;                 \
        for (int64_t i = start; i < end; i++)                          \
            found += (type)(((const type *)count->values)[i] << sign) != 0; \
        total += found;                                                \
    }

/* Counts what is not 0, nor −0 of floats, whose first bit is their sign. */
EVERY_VECTOR_WIDTH
void gather_linear_count(Count *count)
{
    int64_t total = 0;
    if (count->size == 1)
        COUNT(uint8_t, 0)
    else if (count->size == 2)
        COUNT(uint16_t, 1)
    else if (count->size == 4)
        COUNT(uint32_t, 1)
    else
        COUNT(uint64_t, 1)
    count->count = total;
}

#define REAL float
#include "gather_linear.c"
#undef REAL
#define REAL double
#include "gather_linear.c"

#else

typedef REAL TYPED(Vector) __attribute__((vector_size(64), aligned(sizeof(REAL)), may_alias));
enum { TYPED(VECTORS) = PANEL * sizeof(REAL) / 64 };

typedef struct {
    REAL value;
    int32_t input;
} TYPED(Term);

/* A row of inputs as REAL: where it stands, or converted into `row`. */
INLINE const REAL *TYPED(inputs_of)(const Gather *gather, int64_t place, int64_t width, REAL *restrict row)
{
    if (gather->storage == AS_REAL)
        return (const REAL *)gather->x + place;
    if (gather->storage == AS_BYTE)
        for (int64_t i = 0; i < width; i++)
            row[i] = ((const uint8_t *)gather->x)[place + i];
    else {
        float converted[BLOCK];
        read_half(gather->storage, (const uint16_t *)gather->x + place, width, converted);
        for (int64_t i = 0; i < width; i++)
            row[i] = converted[i];
    }
    return row;
}

/* Adds the rows of a list to the sums of a panel. */
INLINE void TYPED(add_rows)(const REAL *restrict panel, int64_t row, const TYPED(Term) *terms, int64_t count,
                            REAL *restrict sums)
{
    TYPED(Vector) sum[TYPED(VECTORS)];
    for (int v = 0; v < TYPED(VECTORS); v++)
        sum[v] = ((TYPED(Vector) *)sums)[v];
    for (int64_t i = 0; i < count; i++) {
        const TYPED(Vector) *from = (const TYPED(Vector) *)(panel + terms[i].input * row);
        const REAL *later = panel + terms[i + AHEAD < count ? i + AHEAD : i].input * row;
        for (int v = 0; v < TYPED(VECTORS); v++)
            __builtin_prefetch(later + v * (PANEL / TYPED(VECTORS)));
        for (int v = 0; v < TYPED(VECTORS); v++)
            sum[v] += terms[i].value * from[v];
    }
    for (int v = 0; v < TYPED(VECTORS); v++)
        ((TYPED(Vector) *)sums)[v] = sum[v];
}

INLINE void TYPED(gather_tile)(const Gather *gather, int64_t first, int64_t samples, int64_t column, int64_t columns,
                               TYPED(Term) *terms)
{
    REAL converted[BLOCK], last[PANEL] = {0};
    int64_t starts[SAMPLES + 1];
    REAL *results = (REAL *)gather->results + first * gather->outputs;
    for (int64_t s = 0; s < samples; s++)
        for (int64_t c = column; c < column + columns && c < gather->outputs; c++)
            results[s * gather->outputs + c] = gather->bias ? ((const REAL *)gather->bias)[c] : 0;
    for (int64_t block = 0; block < gather->inputs; block += BLOCK) {
        int64_t left = gather->inputs - block, width = left < BLOCK ? left : BLOCK, count = 0;
        for (int64_t s = 0; s < samples; s++) {
            const REAL *x = TYPED(inputs_of)(gather, (first + s) * gather->inputs + block, width, converted);
            starts[s] = count;
            for (int32_t i = 0; i < width; i++) {
                terms[count] = (TYPED(Term)){x[i], i};
                count += x[i] != 0;
            }
        }
        starts[samples] = count;
        for (int64_t c = column; c < column + columns; c += PANEL) {
            const REAL *panel = (const REAL *)gather->weight + block * gather->row + c;
            int64_t inside = gather->outputs - c;
            for (int64_t s = 0; s < samples; s++) {
                REAL *sums = results + s * gather->outputs + c;
                const TYPED(Term) *from = terms + starts[s];
                if (inside >= PANEL)
                    TYPED(add_rows)(panel, gather->row, from, starts[s + 1] - starts[s], sums);
                else { /* by way of a whole panel */
                    for (int64_t i = 0; i < inside; i++)
                        last[i] = sums[i];
                    TYPED(add_rows)(panel, gather->row, from, starts[s + 1] - starts[s], last);
                    for (int64_t i = 0; i < inside; i++)
                        sums[i] = last[i];
                }
            }
        }
    }
}

EVERY_VECTOR_WIDTH
static void TYPED(gather_worker)(void *argument)
{
    Gather *gather = argument;
    int64_t padded = (gather->outputs + PANEL - 1) / PANEL * PANEL;
    int64_t across = (padded + gather->columns - 1) / gather->columns;
    TYPED(Term) *terms = (TYPED(Term) *)gather->scratch + atomic_fetch_add(&gather->workers, 1) * gather->terms;
    for (;;) {
        int64_t tile = atomic_fetch_add(&gather->tiles_taken, 1), first = tile / across * SAMPLES;
        int64_t column = tile % across * gather->columns, columns = padded - column, samples = gather->samples - first;
        if (first >= gather->samples)
            return;
        TYPED(gather_tile)(gather, first, samples < SAMPLES ? samples : SAMPLES, column,
                           columns < gather->columns ? columns : gather->columns, terms);
    }
}

void TYPED(gather_linear)(Gather *gather, RunParallel *run_parallel, unsigned threads)
{
    run(TYPED(gather_worker), gather, run_parallel, threads);
}

#endif
