/* Solves periodic tridiagonal systems for the CPU, in place; srm_triton/ops/poisson.py states the equations.

   A system is a column of a plane: height values, `columns` apart. Two sweeps, down and up, are a recursion each, which
   starts from what the column's other end hands on; `reach` rows of that matter. Workers take tiles of columns from a
   counter. */

#ifndef REAL

#include "native.h"

#define TILE 128 /* columns, so that those of a tall plane stay in the second-level cache between the sweeps */

typedef struct {
    int64_t planes, channels, height, columns;
    const int64_t *reach;             /* of each column of a sample, like the next three */
    const void *decay, *gain, *cycle; /* cycle: sum of decay^(n·height) over n ≥ 0 */
    void *values;
    atomic_llong tiles_taken;
} Poisson;

const int64_t poisson_layout[1] = {sizeof(Poisson)}; /* for the loader */

#define REAL float
#include "poisson.c"
#undef REAL
#define REAL double
#include "poisson.c"

#else

/* values ← gain·values + decay·(values of the row before), from `row` on, `stride` from each row to the next. */
INLINE void TYPED(sweep)(REAL *row, int64_t stride, int64_t height, int64_t reach, int64_t width,
                         const REAL *restrict decay, const REAL *restrict gain, const REAL *restrict cycle)
{
    REAL state[TILE] = {0};
    for (int64_t y = height - reach; y < height; y++)
        for (int64_t i = 0; i < width; i++)
            state[i] = gain[i] * row[y * stride + i] + decay[i] * state[i];
    for (int64_t i = 0; i < width; i++)
        state[i] *= cycle[i];
    for (int64_t y = 0; y < height; y++) {
        REAL *restrict values = row + y * stride;
        for (int64_t i = 0; i < width; i++)
            values[i] = state[i] = gain[i] * values[i] + decay[i] * state[i];
    }
}

EVERY_VECTOR_WIDTH
static void TYPED(worker)(void *argument)
{
    Poisson *poisson = argument;
    int64_t columns = poisson->columns, height = poisson->height, in_a_plane = (columns + TILE - 1) / TILE;
    for (int64_t number; (number = atomic_fetch_add(&poisson->tiles_taken, 1)) < poisson->planes * in_a_plane;) {
        int64_t plane = number / in_a_plane, column = number % in_a_plane * TILE;
        int64_t width = columns - column < TILE ? columns - column : TILE;
        int64_t system = plane / poisson->channels * columns + column, reach = 0;
        for (int64_t i = 0; i < width; i++)
            reach = poisson->reach[system + i] > reach ? poisson->reach[system + i] : reach;
        const REAL *decay = (const REAL *)poisson->decay + system, *gain = (const REAL *)poisson->gain + system;
        const REAL *cycle = (const REAL *)poisson->cycle + system;
        REAL *first = (REAL *)poisson->values + plane * height * columns + column;
        REAL *last = first + (height - 1) * columns;
        TYPED(sweep)(first, columns, height, reach, width, decay, gain, cycle);
        TYPED(sweep)(last, -columns, height, reach, width, decay, gain, cycle);
    }
}

void TYPED(poisson_columns)(Poisson *poisson, RunParallel *run_parallel, unsigned threads)
{
    run(TYPED(worker), poisson, run_parallel, threads);
}

#endif
