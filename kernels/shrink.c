/* A split-Bregman step for the CPU, in place; srm_triton/ops/shrink.py states the equations.

   Images are planes of height rows; each sample has `channels` of them, and as many planes of splits of each kind.
   Workers take bands of rows from a counter. A row needs what the splits along y ask of the row above: within a band
   that is kept from row to row, and for its first row found before any worker changes a split. */

#ifndef REAL

#include <string.h>

#include "native.h"

typedef struct {
    int64_t samples, kinds, channels, height, width;
    int64_t band; /* rows */
    int64_t mirrored; /* differences across the edges are 0, as their splits are; else images are periodic */
    double relaxation;
    const void *estimate, *image, *penalty, *weight; /* the last two: of each sample */
    void *splits, *target;
    void *above;     /* of each band: width values that the row above asks of the next estimate */
    void *scratch;   /* of each worker: 4 times width + 1 values */
    double *squares; /* of each row 4 sums: of S(v) less g, of what S(v) moved by, of S(v), of v less S(v) */
    atomic_llong bands_taken, workers;
} Step;

typedef struct {
    int64_t plane, first, end; /* rows */
} Band;

const int64_t shrink_layout[1] = {sizeof(Step)}; /* for the loader */

INLINE int find_band(const Step *step, int64_t number, Band *band)
{
    int64_t in_a_plane = (step->height + step->band - 1) / step->band;
    band->plane = number / in_a_plane;
    band->first = number % in_a_plane * step->band;
    int64_t left = step->height - band->first;
    band->end = band->first + (left < step->band ? left : step->band);
    return band->plane < step->samples * step->channels;
}

/* From a row to what is below it. */
INLINE int64_t to_below(const Step *step, int64_t row)
{
    return row < step->height - 1 ? step->width : step->mirrored ? 0 : -row * step->width;
}

#define REAL float
#include "shrink.c"
#undef REAL
#define REAL double
#include "shrink.c"

#else

INLINE REAL TYPED(advance)(REAL split, REAL value, REAL relaxation)
{
    return split + relaxation * (value - (split - TYPED(clamp)(split)));
}

/* The splits of a plane's first row. */
INLINE REAL *TYPED(splits)(const Step *step, int64_t plane, int64_t kind)
{
    int64_t sample = plane / step->channels, channel = plane % step->channels;
    int64_t before = (sample * step->kinds + kind) * step->channels + channel;
    return (REAL *)step->splits + before * step->height * step->width;
}

/* A row of splits, of the values penalty·(plus − minus). */
INLINE void TYPED(row)(int64_t width, REAL penalty, REAL relaxation, const REAL *plus, const REAL *minus,
                       REAL *restrict splits, REAL *restrict asked, double *restrict squares)
{
    REAL primal = 0, dual = 0, shrunk = 0, bregman = 0;
#pragma omp simd reduction(+ : primal, dual, shrunk, bregman)
    for (int64_t i = 0; i < width; i++) {
        REAL value = penalty * (plus[i] - minus[i]), before = splits[i] - TYPED(clamp)(splits[i]);
        splits[i] = TYPED(advance)(splits[i], value, relaxation);
        REAL b = TYPED(clamp)(splits[i]), d = splits[i] - b;
        asked[i] = d - b;
        primal += (d - value) * (d - value);
        dual += (d - before) * (d - before);
        shrunk += d * d;
        bregman += b * b;
    }
    squares[0] += primal, squares[1] += dual, squares[2] += shrunk, squares[3] += bregman;
}

EVERY_VECTOR_WIDTH
static void TYPED(find_above)(const Step *step)
{
    REAL relaxation = step->relaxation;
    Band band;
    for (int64_t number = 0; find_band(step, number, &band); number++) {
        REAL penalty = ((const REAL *)step->penalty)[band.plane / step->channels];
        int64_t row = (band.first ? band.first : step->height) - 1;
        const REAL *u = (const REAL *)step->estimate + (band.plane * step->height + row) * step->width;
        const REAL *below = u + to_below(step, row);
        const REAL *splits = TYPED(splits)(step, band.plane, 1) + row * step->width;
        REAL *restrict above = (REAL *)step->above + number * step->width;
        for (int64_t i = 0; i < step->width; i++) {
            REAL split = TYPED(advance)(splits[i], penalty * (below[i] - u[i]), relaxation);
            above[i] = split - 2 * TYPED(clamp)(split);
        }
    }
}

EVERY_VECTOR_WIDTH
static void TYPED(worker)(void *argument)
{
    Step *step = argument;
    int64_t width = step->width, number;
    REAL relaxation = step->relaxation;
    REAL *right = (REAL *)step->scratch + 4 * atomic_fetch_add(&step->workers, 1) * (width + 1);
    REAL *restrict along_x = right + width + 1, *restrict along_y = along_x + width + 1;
    REAL *restrict of_residual = along_y + width + 1;
    Band band;
    while (find_band(step, number = atomic_fetch_add(&step->bands_taken, 1), &band)) {
        REAL penalty = ((const REAL *)step->penalty)[band.plane / step->channels];
        REAL weight = ((const REAL *)step->weight)[band.plane / step->channels];
        const REAL *estimate = (const REAL *)step->estimate + band.plane * step->height * width;
        REAL *restrict above = (REAL *)step->above + number * width;
        for (int64_t y = band.first; y < band.end; y++) {
            const REAL *u = estimate + y * width, *below = u + to_below(step, y);
            const REAL *restrict f = (const REAL *)step->image + (band.plane * step->height + y) * width;
            REAL *restrict target = (REAL *)step->target + (band.plane * step->height + y) * width;
            double *squares = step->squares + (band.plane * step->height + y) * 4;
            memset(squares, 0, 4 * sizeof *squares);
            memcpy(right, u + 1, (width - 1) * sizeof *right);
            right[width - 1] = u[step->mirrored ? width - 1 : 0];
            REAL *splits = TYPED(splits)(step, band.plane, 0) + y * width;
            TYPED(row)(width, penalty, relaxation, right, u, splits, along_x + 1, squares);
            along_x[0] = along_x[width];
            splits = TYPED(splits)(step, band.plane, 1) + y * width;
            TYPED(row)(width, penalty, relaxation, below, u, splits, along_y, squares);
            for (int64_t i = 0; i < width; i++) {
                target[i] = weight * ((along_x[i] - along_x[i + 1]) + (above[i] - along_y[i]));
                above[i] = along_y[i];
            }
            if (step->kinds == 3) {
                splits = TYPED(splits)(step, band.plane, 2) + y * width;
                TYPED(row)(width, penalty, relaxation, u, f, splits, of_residual, squares);
                for (int64_t i = 0; i < width; i++)
                    target[i] += of_residual[i] + penalty * f[i];
            } else {
                for (int64_t i = 0; i < width; i++)
                    target[i] += 2 * f[i];
            }
        }
    }
}

void TYPED(shrink_bregman)(Step *step, RunParallel *run_parallel, unsigned threads)
{
    TYPED(find_above)(step);
    run(TYPED(worker), step, run_parallel, threads);
}

#endif
