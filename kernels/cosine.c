/* Puts rows in the order that a cosine transform takes, or back, maybe in place; srm_triton/ops/poisson.py says why.
   Workers take chunks of rows from a counter. */

#ifndef REAL

#include <string.h>

#include "native.h"

#define ROWS 16 /* that a worker takes at once */

typedef struct {
    int64_t rows, width, back;
    const void *source;
    void *ordered;
    void *scratch; /* of each worker: width values */
    atomic_llong chunks_taken, workers;
} Cosine;

const int64_t cosine_layout[1] = {sizeof(Cosine)}; /* for the loader */

#define REAL float
#include "cosine.c"
#undef REAL
#define REAL double
#include "cosine.c"

#else

EVERY_VECTOR_WIDTH
static void TYPED(worker)(void *argument)
{
    Cosine *cosine = argument;
    int64_t width = cosine->width, even = (width + 1) / 2, odd = width / 2, first;
    REAL *restrict to = (REAL *)cosine->scratch + width * atomic_fetch_add(&cosine->workers, 1);
    while ((first = ROWS * atomic_fetch_add(&cosine->chunks_taken, 1)) < cosine->rows) {
        int64_t end = first + ROWS < cosine->rows ? first + ROWS : cosine->rows;
        for (int64_t y = first; y < end; y++) {
            const REAL *restrict from = (const REAL *)cosine->source + y * width;
            if (cosine->back) {
                for (int64_t i = 0; i < odd; i++) {
                    to[2 * i] = from[i];
                    to[2 * i + 1] = from[width - 1 - i];
                }
                if (odd < even)
                    to[width - 1] = from[odd];
            } else {
                for (int64_t i = 0; i < even; i++)
                    to[i] = from[2 * i];
                for (int64_t i = 0; i < odd; i++)
                    to[width - 1 - i] = from[2 * i + 1];
            }
            memcpy((REAL *)cosine->ordered + y * width, to, width * sizeof *to);
        }
    }
}

void TYPED(cosine_order)(Cosine *cosine, RunParallel *run_parallel, unsigned threads)
{
    run(TYPED(worker), cosine, run_parallel, threads);
}

#endif
