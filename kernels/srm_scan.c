/* The SRM scan for the CPU; srm_triton/ops/srm_scan.py states the equations, whose order of operations this keeps.

   Spikes and gradients equal the eager reference bit for bit, so it must be compiled without contraction. Tensors are
   seen as [outer, time, inner]: inner has stride 1, current and gradient have strides of their own, the rest is dense.
   Workers take tiles of neurons from a counter, each tile through all of time with its states in the nearest cache; the
   backward keeps the states at the start of each chunk of time and recomputes the rest. */

#ifndef REAL

#include "native.h"

#define LARGEST_TILE 1024 /* long rows: the processor fetches ahead within a row, not from one step to the next */
#define CHUNK 32

typedef struct {
    int64_t outer, steps, inner, tile;
    int64_t current_stride_outer, current_stride_time, grad_stride_outer, grad_stride_time;
    double membrane_decay, synapse_decay, gradient_decay, amplitude, threshold;
    double rise, membrane_slope_limit, gradient_slope_limit;
    const void *current, *grad_spikes;
    const int32_t *label_steps;
    void *spikes, *membrane, *gradient_trace, *grad_weight_path, *grad_time_path;
    void *scratch; /* of each backward worker: 2 values a step of a chunk, 3 a chunk, times LARGEST_TILE */
    atomic_llong tiles_taken, workers;
} Scan;

typedef struct {
    int64_t row, column, width;
} Tile;

const int64_t srm_scan_layout[3] = {sizeof(Scan), LARGEST_TILE, CHUNK}; /* for the loader */

INLINE int take_tile(Scan *scan, Tile *tile)
{
    int64_t in_a_row = (scan->inner + scan->tile - 1) / scan->tile;
    int64_t number = atomic_fetch_add(&scan->tiles_taken, 1);
    tile->row = number / in_a_row;
    tile->column = number % in_a_row * scan->tile;
    int64_t left = scan->inner - tile->column;
    tile->width = left < scan->tile ? left : scan->tile;
    return tile->row < scan->outer;
}

#define REAL float
#include "srm_scan.c"
#undef REAL
#define REAL double
#include "srm_scan.c"

#else

typedef struct {
    REAL m[LARGEST_TILE], s[LARGEST_TILE], g[LARGEST_TILE];
} TYPED(States);

INLINE void TYPED(copy)(REAL *restrict to, const REAL *restrict from, int64_t width)
{
    for (int64_t i = 0; i < width; i++)
        to[i] = from ? from[i] : 0;
}

/* Copies the states of a tile, or sets them to 0. */
INLINE void TYPED(copy_states)(TYPED(States) *to, const TYPED(States) *from, int64_t width)
{
    TYPED(copy)(to->m, from ? from->m : 0, width);
    TYPED(copy)(to->s, from ? from->s : 0, width);
    TYPED(copy)(to->g, from ? from->g : 0, width);
}

/* One step of a tile: current in; potential, gradient trace and spikes out. */
INLINE void TYPED(step)(const Scan *scan, int64_t width, const REAL *restrict current, TYPED(States) *restrict states,
                        REAL *restrict membrane, REAL *restrict gradient_trace, REAL *restrict spikes)
{
    REAL membrane_decay = scan->membrane_decay, synapse_decay = scan->synapse_decay;
    REAL gradient_decay = scan->gradient_decay, amplitude = scan->amplitude, threshold = scan->threshold;
    for (int64_t i = 0; i < width; i++) {
        REAL x = current[i];
        REAL m = (states->m[i] + x) * membrane_decay;
        REAL s = (states->s[i] + x) * synapse_decay;
        REAL g = (states->g[i] + x) * gradient_decay;
        REAL u = amplitude * (m - s);
        membrane[i] = u;
        gradient_trace[i] = g;
        spikes[i] = u > threshold ? 1 : 0;
        states->m[i] = u > threshold ? 0 : m;
        states->s[i] = u > threshold ? 0 : s;
        states->g[i] = u > threshold ? 0 : g;
    }
}

EVERY_VECTOR_WIDTH
static void TYPED(forward_worker)(void *argument)
{
    Scan *scan = argument;
    Tile tile;
    while (take_tile(scan, &tile)) {
        TYPED(States) states;
        TYPED(copy_states)(&states, 0, tile.width);
        REAL unused[2][LARGEST_TILE];
        const REAL *current = scan->current;
        current += tile.row * scan->current_stride_outer + tile.column;
        int64_t output = tile.row * scan->steps * scan->inner + tile.column;
        for (int64_t t = 0; t < scan->steps; t++) {
            REAL *membrane = scan->membrane ? (REAL *)scan->membrane + output : unused[0];
            REAL *gradient_trace = scan->gradient_trace ? (REAL *)scan->gradient_trace + output : unused[1];
            TYPED(step)(scan, tile.width, current, &states, membrane, gradient_trace, (REAL *)scan->spikes + output);
            current += scan->current_stride_time;
            output += scan->inner;
        }
    }
}

/* clamp(-1/x, -limit, 0), NaN for NaN */
INLINE REAL TYPED(slope)(REAL x, REAL limit)
{
    REAL slope = -1 / x;
    return slope < -limit ? -limit : slope > 0 ? 0 : slope;
}

EVERY_VECTOR_WIDTH
static void TYPED(backward_worker)(void *argument)
{
    Scan *scan = argument;
    Tile tile;
    REAL membrane_decay = scan->membrane_decay, synapse_decay = scan->synapse_decay;
    REAL gradient_decay = scan->gradient_decay, amplitude = scan->amplitude, rise = scan->rise;
    REAL membrane_limit = scan->membrane_slope_limit, gradient_limit = scan->gradient_slope_limit;
    int64_t chunks = (scan->steps + CHUNK - 1) / CHUNK;
    int64_t worker = atomic_fetch_add(&scan->workers, 1);
    REAL *weight_slopes = (REAL *)scan->scratch + worker * (2 * CHUNK + 3 * chunks) * LARGEST_TILE;
    REAL *time_slopes = weight_slopes + CHUNK * LARGEST_TILE;
    TYPED(States) *starts = (TYPED(States) *)(time_slopes + CHUNK * LARGEST_TILE);

    while (take_tile(scan, &tile)) {
        TYPED(States) states;
        TYPED(copy_states)(&states, 0, tile.width);
        int32_t label_steps[LARGEST_TILE];
        for (int64_t i = 0; i < tile.width; i++)
            label_steps[i] = scan->label_steps ? scan->label_steps[tile.row * scan->inner + tile.column + i] : -1;
        REAL membrane[LARGEST_TILE], trace[LARGEST_TILE], spikes[LARGEST_TILE], previous[LARGEST_TILE];
        const REAL *current = scan->current, *grad_spikes = scan->grad_spikes;
        current += tile.row * scan->current_stride_outer + tile.column;
        grad_spikes += tile.row * scan->grad_stride_outer + tile.column;
        int64_t row = tile.row * scan->steps * scan->inner + tile.column;

        for (int64_t t = 0; t < (chunks - 1) * CHUNK; t++) {
            if (t % CHUNK == 0)
                TYPED(copy_states)(&starts[t / CHUNK], &states, tile.width);
            const REAL *x = current + t * scan->current_stride_time;
            TYPED(step)(scan, tile.width, x, &states, membrane, trace, spikes);
        }
        TYPED(copy_states)(&starts[chunks - 1], &states, tile.width);

        REAL weight_response[LARGEST_TILE], synapse_response[LARGEST_TILE], time_response[LARGEST_TILE];
        REAL unused[2][LARGEST_TILE];
        TYPED(copy)(weight_response, 0, tile.width);
        TYPED(copy)(synapse_response, 0, tile.width);
        TYPED(copy)(time_response, 0, tile.width);
        for (int64_t chunk = chunks - 1, end = scan->steps; chunk >= 0; end = chunk-- * CHUNK) {
            TYPED(copy_states)(&states, &starts[chunk], tile.width);
            for (int64_t i = 0; i < tile.width; i++)
                previous[i] = amplitude * (states.m[i] - states.s[i]);
            for (int64_t t = chunk * CHUNK; t < end; t++) {
                const REAL *x = current + t * scan->current_stride_time;
                TYPED(step)(scan, tile.width, x, &states, membrane, trace, spikes);
                REAL *restrict weight_slope = weight_slopes + t % CHUNK * LARGEST_TILE;
                REAL *restrict time_slope = time_slopes + t % CHUNK * LARGEST_TILE;
                for (int64_t i = 0; i < tile.width; i++) {
                    REAL w = TYPED(slope)(membrane[i] - previous[i], membrane_limit);
                    int event = (spikes[i] != 0) | (label_steps[i] == t);
                    weight_slope[i] = event ? w : 1; /* 1, which no slope is, marks a step without event */
                    time_slope[i] = TYPED(slope)(trace[i], gradient_limit);
                    previous[i] = spikes[i] != 0 ? 0 : membrane[i];
                }
            }
            for (int64_t t = end - 1; t >= chunk * CHUNK; t--) {
                int64_t output = row + t * scan->inner;
                const REAL *restrict grad = grad_spikes + t * scan->grad_stride_time;
                const REAL *restrict weight_slope = weight_slopes + t % CHUNK * LARGEST_TILE;
                const REAL *restrict time_slope = time_slopes + t % CHUNK * LARGEST_TILE;
                REAL *restrict weight_path = unused[0], *restrict time_path = unused[1];
                if (scan->grad_weight_path)
                    weight_path = (REAL *)scan->grad_weight_path + output;
                if (scan->grad_time_path)
                    time_path = (REAL *)scan->grad_time_path + output;
                for (int64_t i = 0; i < tile.width; i++) {
                    int event = !(weight_slope[i] > 0);
                    REAL w = weight_slope[i] * grad[i];
                    REAL v = time_slope[i] * grad[i];
                    REAL decayed = membrane_decay * weight_response[i] + rise * synapse_response[i];
                    weight_response[i] = event ? w * rise : decayed;
                    synapse_response[i] = synapse_decay * (event ? w : synapse_response[i]);
                    time_response[i] = gradient_decay * (event ? -v : time_response[i]);
                    weight_path[i] = weight_response[i];
                    time_path[i] = time_response[i];
                }
            }
        }
    }
}

void TYPED(srm_scan_forward)(Scan *scan, RunParallel *run_parallel, unsigned threads)
{
    run(TYPED(forward_worker), scan, run_parallel, threads);
}

void TYPED(srm_scan_backward)(Scan *scan, RunParallel *run_parallel, unsigned threads)
{
    run(TYPED(backward_worker), scan, run_parallel, threads);
}

#endif
