/* Objective and lower bound of total-variation denoising for the CPU; srm_triton/ops/variation.py states the equations.

   Images are planes of height rows; each sample has `channels` of them, and as many planes of splits of each kind, of
   which the first two, along x and y, count. Workers take chunks of rows from a counter. */

#ifndef REAL

#include "native.h"

#define ROWS 16 /* that a worker takes at once */

typedef struct {
    int64_t samples, kinds, channels, height, width;
    int64_t l1, mirrored;
    const void *estimate, *image, *splits;
    const void *weight; /* of each sample */
    const void *range;  /* of each plane: its darkest and its brightest pixel */
    void *scratch;      /* of each worker: 2 times width + 1 values */
    double *sums;       /* of each row 2: its objective, its bound */
    atomic_llong chunks_taken, workers;
} Variation;

const int64_t variation_layout[1] = {sizeof(Variation)}; /* for the loader */

#define REAL float
#include "variation.c"
#undef REAL
#define REAL double
#include "variation.c"

#else

INLINE REAL TYPED(magnitude)(REAL x)
{
    return x < 0 ? -x : x;
}

INLINE void TYPED(row)(const Variation *variation, int64_t number, REAL *restrict right, REAL *restrict left)
{
    int64_t width = variation->width, height = variation->height, plane = number / height, y = number % height;
    int64_t sample = plane / variation->channels, channel = plane % variation->channels;
    int64_t of_x = (sample * variation->kinds * variation->channels + channel) * height;
    const REAL *along_x = (const REAL *)variation->splits + (of_x + y) * width;
    const REAL *along_y = along_x + variation->channels * height * width;
    const REAL *above = along_y + (y > 0 ? -width : (height - 1) * width); /* 0 there if edges are mirrored */
    const REAL *u = (const REAL *)variation->estimate + number * width;
    const REAL *below = u + (y < height - 1 ? width : variation->mirrored ? 0 : -y * width);
    const REAL *f = (const REAL *)variation->image + number * width;
    const REAL *range = (const REAL *)variation->range + 2 * plane;
    REAL weight = ((const REAL *)variation->weight)[sample], darkest = range[0], brightest = range[1];
    for (int64_t i = 0; i < width - 1; i++)
        right[i] = u[i + 1];
    right[width - 1] = u[variation->mirrored ? width - 1 : 0];
    left[0] = TYPED(clamp)(along_x[width - 1]);
    for (int64_t i = 0; i < width; i++)
        left[i + 1] = TYPED(clamp)(along_x[i]);
    double distance = 0, magnitude = 0, bound = 0;
#pragma omp simd reduction(+ : distance, magnitude, bound)
    for (int64_t i = 0; i < width; i++) {
        REAL residual = u[i] - f[i];
        REAL q = weight * ((left[i] - left[i + 1]) + (TYPED(clamp)(above[i]) - TYPED(clamp)(along_y[i])));
        magnitude += TYPED(magnitude)(right[i] - u[i]) + TYPED(magnitude)(below[i] - u[i]);
        if (variation->l1) {
            REAL beyond = TYPED(magnitude)(q) - 1, far = q > 0 ? f[i] - darkest : brightest - f[i];
            distance += TYPED(magnitude)(residual);
            bound += q * f[i] - (beyond > 0 ? beyond : 0) * far;
        } else {
            distance += residual * residual;
            bound += q * (f[i] - q / 4);
        }
    }
    double *sums = variation->sums + 2 * number;
    sums[0] = distance + weight * magnitude;
    sums[1] = bound;
}

EVERY_VECTOR_WIDTH
static void TYPED(worker)(void *argument)
{
    Variation *variation = argument;
    int64_t rows = variation->samples * variation->channels * variation->height, width = variation->width, first;
    REAL *right = (REAL *)variation->scratch + 2 * atomic_fetch_add(&variation->workers, 1) * (width + 1);
    while ((first = ROWS * atomic_fetch_add(&variation->chunks_taken, 1)) < rows)
        for (int64_t number = first; number < first + ROWS && number < rows; number++)
            TYPED(row)(variation, number, right, right + width + 1);
}

void TYPED(variation_sums)(Variation *variation, RunParallel *run_parallel, unsigned threads)
{
    run(TYPED(worker), variation, run_parallel, threads);
}

#endif
