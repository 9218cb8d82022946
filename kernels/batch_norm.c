/* Batch normalisation for the CPU; srm_triton/ops/batch_norm.py states the equations.

   A matrix is dense, with the samples of a feature side by side (`by_rows`) or with the features side by side. Workers
   take tiles from a counter: all samples of one feature; or TILE_ROWS rows of TILE_COLUMNS columns, whose sums are added
   in a fixed order, so that the number of threads changes nothing. There the features of `fold` samples make one row. Sums are of
   differences from a pivot and of their squares: in REAL over short strips, in double over these. The pivot is the mean
   of an eighth of the samples, which no samples can put further than √7 deviations from the mean of all. */

#ifndef REAL

#include <math.h>

#include "native.h"

#define TILE_ROWS 128
#define TILE_COLUMNS 1024
#define STRIP_ROWS 16 /* of a tile */
#define STRIP 512     /* samples of one feature */

typedef struct {
    int64_t samples, features, by_rows, fold;
    int64_t keep_zeros; /* whether an x of 0 gives 0, and takes no gradient */
    double eps, divisor;
    const void *inputs, *weight, *bias, *grad_outputs;
    void *results; /* outputs, or gradients of the inputs */
    void *statistics, *grad_affine;
    double *partials; /* of each TILE_ROWS rows 3 sums of each column, of the backward 2; not by rows */
    atomic_llong tiles_taken;
} BatchNorm;

typedef struct {
    int64_t row, rows, column, columns; /* by rows, the column is the feature */
} Tile;

const int64_t batch_norm_layout[3] = {sizeof(BatchNorm), TILE_COLUMNS, TILE_ROWS}; /* for the loader */

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int take_tile(BatchNorm *norm, Tile *tile)
{
    int64_t number = atomic_fetch_add(&norm->tiles_taken, 1), columns = norm->features * norm->fold;
    int64_t across = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    if (norm->by_rows) {
        *tile = (Tile){0, norm->samples, number, 1};
        return number < norm->features;
    }
    tile->row = number / across * TILE_ROWS;
    tile->column = number % across * TILE_COLUMNS;
    tile->rows = least(norm->samples / norm->fold - tile->row, TILE_ROWS);
    tile->columns = least(columns - tile->column, TILE_COLUMNS);
    return tile->rows > 0;
}

INLINE int64_t place_of(const BatchNorm *norm, const Tile *tile, int64_t row)
{
    return (tile->row + row) * norm->features * norm->fold + tile->column;
}

/* The sums of a column over the rows of a tile, of which there are `kinds`. */
INLINE double *partial(const BatchNorm *norm, int64_t row, int64_t column, int kinds, int kind)
{
    return norm->partials + (row / TILE_ROWS * kinds + kind) * norm->features * norm->fold + column;
}

/* With what the samples of a feature are normalised: the mean in two parts, 1/√(v + eps), the scale and the shift. */
enum { HIGH, LOW, RATE, WEIGHT, BIAS, ROWS };

#define REAL float
#include "batch_norm.c"
#undef REAL
#define REAL double
#include "batch_norm.c"

#else

INLINE void TYPED(load_features)(const BatchNorm *norm, const Tile *tile, REAL (*of)[TILE_COLUMNS])
{
    const REAL *statistics = norm->statistics, *weight = norm->weight, *bias = norm->bias;
    int64_t features = norm->features, feature = tile->column % features;
    for (int64_t i = 0; i < tile->columns; i++) {
        of[HIGH][i] = statistics[feature];
        of[LOW][i] = statistics[features + feature];
        of[RATE][i] = 1 / sqrt(statistics[2 * features + feature] + norm->eps);
        of[WEIGHT][i] = weight ? weight[feature] : 1;
        of[BIAS][i] = bias ? bias[feature] : 0;
        feature = feature + 1 < features ? feature + 1 : 0;
    }
}

/* Stores the statistics of a feature from sums about `high` of the differences and of their squares. */
INLINE void TYPED(store_statistics)(const BatchNorm *norm, int64_t feature, REAL high, double sum, double squares)
{
    REAL *statistics = (REAL *)norm->statistics + feature;
    double low = sum / norm->samples, variance = (squares - low * sum) / norm->divisor;
    statistics[0] = high;
    statistics[norm->features] = low;
    statistics[2 * norm->features] = variance < 0 ? 0 : variance;
}

/* Row by row, a row being the samples of a feature */

INLINE void TYPED(forward_row)(const BatchNorm *norm, const Tile *tile)
{
    int64_t samples = norm->samples, keep_zeros = norm->keep_zeros;
    const REAL *restrict x = (const REAL *)norm->inputs + tile->column * samples;
    REAL *restrict y = (REAL *)norm->results + tile->column * samples;
    double total = 0, sum = 0, squares = 0;
    for (int64_t first = 0; first < samples; first += STRIP) {
        REAL part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t i = first; i < least(first + STRIP, samples); i++)
            part += x[i];
        total += part;
    }
    REAL high = total / samples;
    for (int64_t first = 0; first < samples; first += STRIP) {
        REAL part = 0, of_squares = 0;
#pragma omp simd reduction(+ : part, of_squares)
        for (int64_t i = first; i < least(first + STRIP, samples); i++) {
            REAL difference = x[i] - high;
            part += difference;
            of_squares += difference * difference;
        }
        sum += part;
        squares += of_squares;
    }
    TYPED(store_statistics)(norm, tile->column, high, sum, squares);
    REAL of[ROWS][TILE_COLUMNS];
    TYPED(load_features)(norm, tile, of);
    REAL scale = of[RATE][0] * of[WEIGHT][0], shift = of[BIAS][0] - of[LOW][0] * scale;
    for (int64_t i = 0; i < samples; i++) {
        REAL normalised = (x[i] - high) * scale + shift;
        y[i] = keep_zeros & (x[i] == 0) ? 0 : normalised;
    }
}

INLINE void TYPED(backward_row)(const BatchNorm *norm, const Tile *tile)
{
    int64_t samples = norm->samples, keep_zeros = norm->keep_zeros, place = tile->column * samples;
    const REAL *restrict x = (const REAL *)norm->inputs + place, *restrict dy = (const REAL *)norm->grad_outputs + place;
    REAL *restrict dx = (REAL *)norm->results + place, *grad_affine = norm->grad_affine;
    REAL of[ROWS][TILE_COLUMNS];
    TYPED(load_features)(norm, tile, of);
    REAL high = of[HIGH][0], low = of[LOW][0], rate = of[RATE][0];
    double grad_weight = 0, grad_bias = 0;
    for (int64_t first = 0; first < samples; first += STRIP) {
        REAL of_weight = 0, of_bias = 0;
#pragma omp simd reduction(+ : of_weight, of_bias)
        for (int64_t i = first; i < least(first + STRIP, samples); i++) {
            REAL given = dy[i], grad = keep_zeros & (x[i] == 0) ? 0 : given;
            of_weight += grad * (x[i] - high);
            of_bias += grad;
        }
        grad_weight += of_weight;
        grad_bias += of_bias;
    }
    grad_weight = (grad_weight - low * grad_bias) * rate;
    grad_affine[tile->column] = grad_weight;
    grad_affine[norm->features + tile->column] = grad_bias;
    REAL scale = rate * of[WEIGHT][0], slope = rate * (REAL)(grad_weight / norm->divisor);
    REAL mean = grad_bias / samples - low * slope;
    for (int64_t i = 0; i < samples; i++) {
        REAL given = dy[i], grad = keep_zeros & (x[i] == 0) ? 0 : given;
        dx[i] = scale * (grad - mean - (x[i] - high) * slope);
    }
}

/* Tile by tile: a first pass leaves sums of each, a second one normalises */

INLINE void TYPED(sum_forward)(const BatchNorm *norm, const Tile *tile)
{
    REAL pivot[TILE_COLUMNS] = {0};
    double sum[TILE_COLUMNS] = {0}, squares[TILE_COLUMNS] = {0};
    int64_t eighth = (tile->rows + 7) / 8;
    for (int64_t row = 0; row < eighth; row++) {
        const REAL *restrict x = (const REAL *)norm->inputs + place_of(norm, tile, row);
        for (int64_t i = 0; i < tile->columns; i++)
            pivot[i] += x[i] / eighth;
    }
    for (int64_t row = 0; row < tile->rows;) {
        REAL part[TILE_COLUMNS] = {0}, of_squares[TILE_COLUMNS] = {0};
        for (int64_t end = least(row + STRIP_ROWS, tile->rows); row < end; row++) {
            const REAL *restrict x = (const REAL *)norm->inputs + place_of(norm, tile, row);
            for (int64_t i = 0; i < tile->columns; i++) {
                REAL difference = x[i] - pivot[i];
                part[i] += difference;
                of_squares[i] += difference * difference;
            }
        }
        for (int64_t i = 0; i < tile->columns; i++) {
            sum[i] += part[i];
            squares[i] += of_squares[i];
        }
    }
    for (int64_t i = 0; i < tile->columns; i++) {
        partial(norm, tile->row, tile->column, 3, 0)[i] = pivot[i];
        partial(norm, tile->row, tile->column, 3, 1)[i] = sum[i];
        partial(norm, tile->row, tile->column, 3, 2)[i] = squares[i];
    }
}

static void TYPED(merge_forward)(const BatchNorm *norm)
{
    int64_t rows = norm->samples / norm->fold, columns = norm->features * norm->fold;
    for (int64_t feature = 0; feature < norm->features; feature++) {
        double total = 0, sum = 0, squares = 0;
        for (int64_t row = 0; row < rows; row += TILE_ROWS)
            for (int64_t column = feature; column < columns; column += norm->features) {
                double pivot = *partial(norm, row, column, 3, 0);
                total += pivot * least(rows - row, TILE_ROWS) + *partial(norm, row, column, 3, 1);
            }
        REAL high = total / norm->samples;
        for (int64_t row = 0; row < rows; row += TILE_ROWS)
            for (int64_t column = feature; column < columns; column += norm->features) {
                double shift = *partial(norm, row, column, 3, 0) - high, part = *partial(norm, row, column, 3, 1);
                double shifts = shift * least(rows - row, TILE_ROWS);
                sum += part + shifts;
                squares += *partial(norm, row, column, 3, 2) + shift * (2 * part + shifts);
            }
        TYPED(store_statistics)(norm, feature, high, sum, squares);
    }
}

INLINE void TYPED(normalise)(const BatchNorm *norm, const Tile *tile)
{
    int64_t keep_zeros = norm->keep_zeros;
    REAL of[ROWS][TILE_COLUMNS], scale[TILE_COLUMNS], shift[TILE_COLUMNS];
    TYPED(load_features)(norm, tile, of);
    for (int64_t i = 0; i < tile->columns; i++) {
        scale[i] = of[RATE][i] * of[WEIGHT][i];
        shift[i] = of[BIAS][i] - of[LOW][i] * scale[i];
    }
    for (int64_t row = 0; row < tile->rows; row++) {
        const REAL *restrict x = (const REAL *)norm->inputs + place_of(norm, tile, row);
        REAL *restrict y = (REAL *)norm->results + place_of(norm, tile, row);
        for (int64_t i = 0; i < tile->columns; i++) {
            REAL normalised = (x[i] - of[HIGH][i]) * scale[i] + shift[i];
            y[i] = keep_zeros & (x[i] == 0) ? 0 : normalised;
        }
    }
}

INLINE void TYPED(sum_backward)(const BatchNorm *norm, const Tile *tile)
{
    int64_t keep_zeros = norm->keep_zeros;
    REAL of[ROWS][TILE_COLUMNS];
    double of_weight[TILE_COLUMNS] = {0}, of_bias[TILE_COLUMNS] = {0};
    TYPED(load_features)(norm, tile, of);
    for (int64_t row = 0; row < tile->rows;) {
        REAL products[TILE_COLUMNS] = {0}, grads[TILE_COLUMNS] = {0};
        for (int64_t end = least(row + STRIP_ROWS, tile->rows); row < end; row++) {
            const REAL *restrict x = (const REAL *)norm->inputs + place_of(norm, tile, row);
            const REAL *restrict dy = (const REAL *)norm->grad_outputs + place_of(norm, tile, row);
            for (int64_t i = 0; i < tile->columns; i++) {
                REAL given = dy[i], grad = keep_zeros & (x[i] == 0) ? 0 : given;
                products[i] += grad * (x[i] - of[HIGH][i]);
                grads[i] += grad;
            }
        }
        for (int64_t i = 0; i < tile->columns; i++) {
            of_weight[i] += products[i];
            of_bias[i] += grads[i];
        }
    }
    for (int64_t i = 0; i < tile->columns; i++) {
        double about_mean = of_weight[i] - of[LOW][i] * of_bias[i];
        partial(norm, tile->row, tile->column, 2, 0)[i] = about_mean * of[RATE][i];
        partial(norm, tile->row, tile->column, 2, 1)[i] = of_bias[i];
    }
}

static void TYPED(merge_backward)(const BatchNorm *norm)
{
    int64_t rows = norm->samples / norm->fold, columns = norm->features * norm->fold;
    REAL *grad_affine = norm->grad_affine;
    for (int kind = 0; kind < 2; kind++)
        for (int64_t feature = 0; feature < norm->features; feature++) {
            double sum = 0;
            for (int64_t row = 0; row < rows; row += TILE_ROWS)
                for (int64_t column = feature; column < columns; column += norm->features)
                    sum += *partial(norm, row, column, 2, kind);
            grad_affine[kind * norm->features + feature] = sum;
        }
}

INLINE void TYPED(differentiate)(const BatchNorm *norm, const Tile *tile)
{
    int64_t features = norm->features, keep_zeros = norm->keep_zeros;
    const REAL *grad_affine = norm->grad_affine;
    REAL of[ROWS][TILE_COLUMNS], scale[TILE_COLUMNS], mean[TILE_COLUMNS], slope[TILE_COLUMNS];
    TYPED(load_features)(norm, tile, of);
    for (int64_t i = 0; i < tile->columns; i++) {
        int64_t feature = (tile->column + i) % features;
        scale[i] = of[RATE][i] * of[WEIGHT][i];
        slope[i] = of[RATE][i] * (REAL)(grad_affine[feature] / norm->divisor);
        mean[i] = grad_affine[features + feature] / norm->samples - of[LOW][i] * slope[i];
    }
    for (int64_t row = 0; row < tile->rows; row++) {
        const REAL *restrict x = (const REAL *)norm->inputs + place_of(norm, tile, row);
        const REAL *restrict dy = (const REAL *)norm->grad_outputs + place_of(norm, tile, row);
        REAL *restrict dx = (REAL *)norm->results + place_of(norm, tile, row);
        for (int64_t i = 0; i < tile->columns; i++) {
            REAL given = dy[i], grad = keep_zeros & (x[i] == 0) ? 0 : given;
            dx[i] = scale[i] * (grad - mean[i] - (x[i] - of[HIGH][i]) * slope[i]);
        }
    }
}

#define WORKER(name, part)                     \
    EVERY_VECTOR_WIDTH                         \
    static void name(void *argument)           \
    {                                          \
        Tile tile;                             \
        while (take_tile(argument, &tile))     \
            part(argument, &tile);             \
    }

WORKER(TYPED(forward_rows), TYPED(forward_row))
WORKER(TYPED(backward_rows), TYPED(backward_row))
WORKER(TYPED(sum_forward_tiles), TYPED(sum_forward))
WORKER(TYPED(normalise_tiles), TYPED(normalise))
WORKER(TYPED(sum_backward_tiles), TYPED(sum_backward))
WORKER(TYPED(differentiate_tiles), TYPED(differentiate))

void TYPED(batch_norm_forward)(BatchNorm *norm, RunParallel *run_parallel, unsigned threads)
{
    if (norm->by_rows) {
        run(TYPED(forward_rows), norm, run_parallel, threads);
        return;
    }
    run(TYPED(sum_forward_tiles), norm, run_parallel, threads);
    TYPED(merge_forward)(norm);
    norm->tiles_taken = 0;
    run(TYPED(normalise_tiles), norm, run_parallel, threads);
}

void TYPED(batch_norm_backward)(BatchNorm *norm, RunParallel *run_parallel, unsigned threads)
{
    if (norm->by_rows) {
        run(TYPED(backward_rows), norm, run_parallel, threads);
        return;
    }
    run(TYPED(sum_backward_tiles), norm, run_parallel, threads);
    TYPED(merge_backward)(norm);
    norm->tiles_taken = 0;
    run(TYPED(differentiate_tiles), norm, run_parallel, threads);
}

#endif
