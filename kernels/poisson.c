/* Solves tridiagonal systems, periodic or mirrored, for the CPU, in place; srm_triton/ops/poisson.py states the equations.

   A system is a column of a plane: height values, `columns` apart. Two sweeps, down and up, are a recursion each. What
   it starts from the column's other end hands on, or its mirror image; `reach` rows of that matter. Workers take tiles
   of columns from a counter. */

#ifndef REAL

#include <string.h>

#include "native.h"

#define TILE 128 /* columns, so that those of a tall plane stay in the second-level cache between the sweeps */

typedef struct {
    int64_t planes, channels, height, columns, mirrored;
    const int64_t *reach;             /* of each column of a sample, like the next three */
    const void *decay, *gain, *cycle; /* cycle: sum of decay^(n·period) over n ≥ 0; height is half a mirrored period */
    const void *mirror;               /* gain times the sum of decay^n over n ≥ 0; for mirrored systems */
    const void *turn;                 /* for those, of each pair of columns cosine and sine of what turns it */
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

/* state ← gain·values + decay·state for each of the rows, `stride` from each to the next. */
INLINE void TYPED(pass)(const REAL *row, int64_t stride, int64_t rows, int64_t width, const REAL *restrict decay,
                        const REAL *restrict gain, REAL *restrict state)
{
    for (int64_t y = 0; y < rows; y++)
        for (int64_t i = 0; i < width; i++)
            state[i] = gain[i] * row[y * stride + i] + decay[i] * state[i];
}

/* The same, and values ← state. */
INLINE void TYPED(sweep)(REAL *row, int64_t stride, int64_t rows, int64_t width, const REAL *restrict decay,
                         const REAL *restrict gain, REAL *restrict state)
{
    for (int64_t y = 0; y < rows; y++) {
        REAL *restrict values = row + y * stride;
        for (int64_t i = 0; i < width; i++)
            values[i] = state[i] = gain[i] * values[i] + decay[i] * state[i];
    }
}

INLINE void TYPED(scale)(int64_t width, const REAL *restrict factor, REAL *restrict state)
{
    for (int64_t i = 0; i < width; i++)
        state[i] *= factor[i];
}

/* Turns each pair of columns by an angle, or back. */
INLINE void TYPED(turn)(REAL *first, int64_t stride, int64_t height, int64_t width, const REAL *restrict turn, REAL sign)
{
    for (int64_t y = 0; y < height; y++) {
        REAL *restrict values = first + y * stride;
        for (int64_t i = 0; i < width; i += 2) {
            REAL x = values[i], y = values[i + 1], cosine = turn[i], sine = sign * turn[i + 1];
            values[i] = x * cosine + y * sine;
            values[i + 1] = y * cosine - x * sine;
        }
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
        const REAL *mirror = (const REAL *)poisson->mirror + system;
        REAL *first = (REAL *)poisson->values + plane * height * columns + column;
        REAL *last = first + (height - 1) * columns;
        const REAL *turn = (const REAL *)poisson->turn + column;
        if (poisson->mirrored)
            TYPED(turn)(first, columns, height, width, turn, 1);
        REAL state[TILE] = {0};
        int64_t down = reach > height ? reach - height : 0, up = reach - down;
        if (poisson->mirrored) { /* a period is the rows and, in front of them, the rows upside down */
            TYPED(pass)(last - (down - 1) * columns, columns, down, width, decay, gain, state);
            TYPED(pass)(first + (up - 1) * columns, -columns, up, width, decay, gain, state);
        } else {
            TYPED(pass)(last - (reach - 1) * columns, columns, reach, width, decay, gain, state);
        }
        TYPED(scale)(width, cycle, state);
        TYPED(sweep)(first, columns, height, width, decay, gain, state);
        if (poisson->mirrored) {
            TYPED(scale)(width, mirror, state); /* to the last value of the solution, which the row below it equals */
        } else {
            memset(state, 0, sizeof state);
            TYPED(pass)(first + (reach - 1) * columns, -columns, reach, width, decay, gain, state);
            TYPED(scale)(width, cycle, state);
        }
        TYPED(sweep)(last, -columns, height, width, decay, gain, state);
        if (poisson->mirrored)
            TYPED(turn)(first, columns, height, width, turn, -1);
    }
}

void TYPED(poisson_columns)(Poisson *poisson, RunParallel *run_parallel, unsigned threads)
{
    run(TYPED(worker), poisson, run_parallel, threads);
}

#endif
