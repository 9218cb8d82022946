/* The SRM scan for the CPU; srm_triton/ops/srm_scan.py states the equations, whose order of operations this keeps.

   Spikes and gradients equal the eager reference bit for bit, so it must be compiled without contraction. Sequences in
   half precision are converted by rows of a tile. Tensors are seen as [outer, time, inner]: inner has stride 1, current and gradient have strides of their own, the rest is dense;
   states are [3, outer, inner]. Workers take tiles of neurons from a counter, each tile through all of time with its
   states in the nearest cache; the backward keeps the states at the start of each chunk of time and recomputes the rest.
   Constants that the neurons of a tile share stand in registers: each loop is compiled for these and for constants that
   change within a tile. A tile lies within a `block` of a row, all of one channel where that is long. */

#ifndef REAL

#include "half.h"

#define LARGEST_TILE 1024 /* long rows: the processor fetches ahead within a row, not from one step to the next */
#define CHUNK 32
#define PI 3.141592653589793

typedef struct {
    int64_t outer, steps, inner, tile, block, channels, channel_stride;
    int64_t each; /* whether constants change within a tile */
    int64_t current_stride_outer, current_stride_time, grad_stride_outer, grad_stride_time;
    int64_t storage; /* of sequences: AS_REAL, or half precision; membrane and gradient trace are REAL */
    int64_t spike_storage; /* of spikes and of their gradient: as above, or of spikes AS_BYTE */
    int64_t rule;    /* 0: event; surrogate: 1 arctan, 2 fast sigmoid; 3: original */
    double rise;  /* of the potential at which a silent output neuron counts as firing */
    const void *current, *constants, *initial, *grad_spikes, *grad_final;
    int32_t *events;
    void *spikes, *final, *membrane, *gradient_trace, *weight_path, *time_path, *grad_initial, *grad_constants;
    void *scratch; /* of each backward worker: 3 values a step of a chunk, 3 a chunk, times LARGEST_TILE */
    atomic_llong tiles_taken, workers;
} Scan;

typedef struct {
    int64_t row, column, width;
} Tile;

enum { MEMBRANE_DECAY, SYNAPSE_DECAY, GRADIENT_DECAY, RISE, THRESHOLD, MEMBRANE_LIMIT, GRADIENT_LIMIT, SHARPNESS, ROWS };

const int64_t srm_scan_layout[3] = {sizeof(Scan), LARGEST_TILE, CHUNK}; /* for the loader */

INLINE int take_tile(Scan *scan, Tile *tile)
{
    int64_t in_a_block = (scan->block + scan->tile - 1) / scan->tile, in_a_row = scan->inner / scan->block * in_a_block;
    int64_t number = atomic_fetch_add(&scan->tiles_taken, 1), within = number % in_a_row;
    int64_t start = within % in_a_block * scan->tile, left = scan->block - start;
    tile->row = number / in_a_row;
    tile->column = within / in_a_block * scan->block + start;
    tile->width = left < scan->tile ? left : scan->tile;
    return tile->row < scan->outer;
}

/* Of a constant, the value for neuron i of a tile. */
#define OF(row) (each ? c[row][i] : shared[row])

#define REAL float
#include "srm_scan.c"
#undef REAL
#define REAL double
#include "srm_scan.c"

#else

typedef REAL TYPED(Row)[LARGEST_TILE];

typedef struct {
    TYPED(Row) u, s, g;
} TYPED(State);

/* A row of a sequence as REAL: where it stands, or converted into `row`. */
INLINE const REAL *TYPED(read)(int64_t storage, const void *sequence, int64_t place, int64_t width, REAL *restrict row)
{
    if (storage == AS_REAL)
        return (const REAL *)sequence + place;
    read_half(storage, (const uint16_t *)sequence + place, width, (float *)row);
    return row;
}

/* Where to write a row of a sequence: to its place, or to `row`, which `finish` converts; to `row` for none. */
INLINE REAL *TYPED(begin)(const Scan *scan, void *sequence, int64_t place, REAL *row)
{
    return sequence && scan->storage == AS_REAL ? (REAL *)sequence + place : row;
}

INLINE void TYPED(finish)(const Scan *scan, void *sequence, int64_t place, int64_t width, const REAL *row)
{
    if (sequence && scan->storage != AS_REAL)
        write_half(scan->storage, (const float *)row, width, (uint16_t *)sequence + place);
}

/* Writes 0 and 1 of a row in the type of spikes, unless the row stands in its place. */
INLINE void TYPED(finish_spikes)(const Scan *scan, int64_t place, int64_t width, const REAL *restrict row)
{
    uint16_t one = scan->spike_storage == AS_BFLOAT16 ? 0x3f80 : 0x3c00;
    if (scan->spike_storage == AS_BYTE)
        for (int64_t i = 0; i < width; i++)
            ((uint8_t *)scan->spikes)[place + i] = row[i] != 0;
    else if (scan->spike_storage != AS_REAL)
        for (int64_t i = 0; i < width; i++)
            ((uint16_t *)scan->spikes)[place + i] = row[i] != 0 ? one : 0;
}

INLINE void TYPED(copy)(REAL *restrict to, const REAL *restrict from, int64_t width)
{
    for (int64_t i = 0; i < width; i++)
        to[i] = from ? from[i] : 0;
}

INLINE void TYPED(copy_state)(TYPED(State) *restrict to, const TYPED(State) *restrict from, int64_t width)
{
    TYPED(copy)(to->u, from->u, width);
    TYPED(copy)(to->s, from->s, width);
    TYPED(copy)(to->g, from->g, width);
}

/* Loads the states of a tile, or sets them to 0. */
INLINE void TYPED(load_state)(TYPED(State) *to, const void *states, const Scan *scan, const Tile *tile)
{
    const REAL *from = states;
    int64_t place = tile->row * scan->inner + tile->column, neurons = scan->outer * scan->inner;
    TYPED(copy)(to->u, from ? from + place : 0, tile->width);
    TYPED(copy)(to->s, from ? from + neurons + place : 0, tile->width);
    TYPED(copy)(to->g, from ? from + 2 * neurons + place : 0, tile->width);
}

INLINE void TYPED(store_state)(void *states, const TYPED(State) *from, const Scan *scan, const Tile *tile)
{
    REAL *to = states;
    int64_t place = tile->row * scan->inner + tile->column, neurons = scan->outer * scan->inner;
    if (to) {
        TYPED(copy)(to + place, from->u, tile->width);
        TYPED(copy)(to + neurons + place, from->s, tile->width);
        TYPED(copy)(to + 2 * neurons + place, from->g, tile->width);
    }
}

/* Loads the constants of a tile, unless they are `loaded`: from which neuron of all channels, and of how many. */
INLINE void TYPED(load_constants)(TYPED(Row) *c, int each, const Scan *scan, const Tile *tile, int64_t loaded[2])
{
    int64_t neuron = (tile->row * scan->inner + tile->column) % (scan->channels * scan->channel_stride);
    int64_t channel = neuron / scan->channel_stride, place = neuron % scan->channel_stride;
    int64_t count = each ? tile->width : 1;
    if (loaded[0] == neuron && loaded[1] >= count)
        return;
    loaded[0] = neuron, loaded[1] = count;
    for (int64_t i = 0; i < count; i++) {
        for (int row = 0; row < ROWS; row++)
            c[row][i] = ((const REAL *)scan->constants)[row * scan->channels + channel];
        if (++place == scan->channel_stride) {
            place = 0;
            channel = channel + 1 < scan->channels ? channel + 1 : 0;
        }
    }
}

/* One step of a tile: current in; synaptic current and potential before the reset, gradient trace and spikes out. */
INLINE void TYPED(step)(int64_t width, TYPED(Row) *restrict c, int each, const REAL *restrict current,
                        TYPED(State) *restrict state, REAL *restrict synapse, REAL *restrict membrane,
                        REAL *restrict gradient_trace, REAL *restrict spikes)
{
    REAL shared[ROWS];
    for (int row = 0; row < ROWS; row++)
        shared[row] = c[row][0];
    for (int64_t i = 0; i < width; i++) {
        REAL s = state->s[i] + current[i];
        REAL u = OF(MEMBRANE_DECAY) * state->u[i] + s * OF(RISE);
        REAL g = (state->g[i] + current[i]) * OF(GRADIENT_DECAY);
        int fired = u > OF(THRESHOLD);
        synapse[i] = s;
        membrane[i] = u;
        gradient_trace[i] = g;
        spikes[i] = fired ? 1 : 0;
        state->u[i] = fired ? 0 : u;
        state->s[i] = fired ? 0 : s * OF(SYNAPSE_DECAY);
        state->g[i] = fired ? 0 : g;
    }
}

INLINE void TYPED(forward)(Scan *scan, int each)
{
    TYPED(Row) c[ROWS] = {0}, unused[3], before, converted, fired;
    TYPED(State) state;
    REAL rise = scan->rise;
    int64_t loaded[2] = {-1, 0};
    Tile tile;
    while (take_tile(scan, &tile)) {
        TYPED(load_constants)(c, each, scan, &tile, loaded);
        TYPED(load_state)(&state, scan->initial, scan, &tile);
        int64_t input = tile.row * scan->current_stride_outer + tile.column;
        int64_t output = tile.row * scan->steps * scan->inner + tile.column;
        int32_t *events = scan->events ? scan->events + tile.row * scan->inner + tile.column : 0;
        for (int64_t i = 0; events && i < tile.width; i++)
            events[i] = -1;
        for (int64_t t = 0; t < scan->steps; t++) {
            REAL *membrane = scan->membrane ? (REAL *)scan->membrane + output : unused[0];
            REAL *gradient_trace = scan->gradient_trace ? (REAL *)scan->gradient_trace + output : unused[1];
            const REAL *current = TYPED(read)(scan->storage, scan->current, input, tile.width, converted);
            REAL *spikes = scan->spike_storage == AS_REAL ? (REAL *)scan->spikes + output : fired;
            if (events)
                TYPED(copy)(before, state.u, tile.width);
            TYPED(step)(tile.width, c, each, current, &state, unused[2], membrane, gradient_trace, spikes);
            for (int64_t i = 0; events && i < tile.width; i++) /* −2 marks a neuron that has fired */
                events[i] = spikes[i] != 0 || events[i] == -2 ? -2 : membrane[i] - before[i] > rise ? t : events[i];
            TYPED(finish_spikes)(scan, output, tile.width, fired);
            input += scan->current_stride_time;
            output += scan->inner;
        }
        for (int64_t i = 0; events && i < tile.width; i++)
            events[i] = events[i] < 0 ? -1 : events[i];
        TYPED(store_state)(scan->final, &state, scan, &tile);
    }
}

EVERY_VECTOR_WIDTH
static void TYPED(forward_worker)(void *argument)
{
    Scan *scan = argument;
    if (scan->each)
        TYPED(forward)(scan, 1);
    else
        TYPED(forward)(scan, 0);
}

/* clamp(1/x, 0, limit), the limit for −0 too, NaN for NaN */
INLINE REAL TYPED(slope)(REAL x, REAL limit)
{
    REAL slope = 1 / (x + 0);
    return slope > limit ? limit : slope < 0 ? 0 : slope;
}

INLINE REAL TYPED(surrogate)(REAL v, REAL sharpness, int64_t rule)
{
    REAL arctan = v * (sharpness * (REAL)PI), fast_sigmoid = 1 + (v < 0 ? -v : v) * (sharpness * 2);
    return sharpness / (rule == 1 ? 1 + arctan * arctan : fast_sigmoid * fast_sigmoid);
}

/* One step back of a tile, from what the step forward left: its gradient and those of the state behind it in; both
   paths, and the gradient of the state before it, out. */
INLINE void TYPED(step_back)(int64_t width, TYPED(Row) *restrict c, int each, int64_t rule, int learn,
                             const REAL *restrict grad, const REAL *restrict previous, const REAL *restrict synapse,
                             const REAL *restrict membrane, const REAL *restrict trace, const int32_t *restrict events,
                             int32_t t, TYPED(State) *restrict to, TYPED(State) *restrict sums,
                             REAL *restrict weight_path, REAL *restrict time_path)
{
    REAL shared[ROWS];
    for (int row = 0; row < ROWS; row++)
        shared[row] = c[row][0];
    for (int64_t i = 0; i < width; i++) {
        REAL u = membrane[i];
        int fired = u > OF(THRESHOLD);
        REAL w, v = 0;
        if (rule == 0 || rule == 3) {
            int event = fired | (events[i] == t);
            w = grad[i] * TYPED(slope)(u - previous[i], OF(MEMBRANE_LIMIT));
            w = event ? w : 0;
            if (rule == 0) {
                v = grad[i] * TYPED(slope)(trace[i], OF(GRADIENT_LIMIT));
                v = event ? v : 0;
            }
        } else
            w = grad[i] * TYPED(surrogate)(u - OF(THRESHOLD), OF(SHARPNESS), rule);
        REAL p = w + (fired ? 0 : to->u[i]);
        REAL q = fired ? 0 : to->s[i];
        REAL r = v + (fired ? 0 : to->g[i]);
        if (learn) {
            REAL product = p * previous[i], of_rise = (p - q) * synapse[i];
            sums->u[i] += p == 0 ? 0 : product;
            sums->s[i] += p - q == 0 ? 0 : of_rise;
            sums->g[i] += -w;
        }
        REAL weight = p * OF(RISE) + q * OF(SYNAPSE_DECAY);
        REAL of_trace = r * OF(GRADIENT_DECAY), time = (p - q) * OF(RISE);
        to->u[i] = p * OF(MEMBRANE_DECAY);
        to->s[i] = weight_path[i] = weight;
        to->g[i] = of_trace;
        time_path[i] = rule == 3 ? time : of_trace;
    }
}

INLINE void TYPED(backward)(Scan *scan, int each, int64_t rule, int learn)
{
    int64_t chunks = (scan->steps + CHUNK - 1) / CHUNK;
    int64_t worker = atomic_fetch_add(&scan->workers, 1);
    TYPED(Row) *membranes = (TYPED(Row) *)scan->scratch + worker * 3 * (CHUNK + chunks);
    TYPED(Row) *traces = membranes + CHUNK, *synapses = traces + CHUNK;
    TYPED(State) *starts = (TYPED(State) *)(synapses + CHUNK);
    TYPED(Row) c[ROWS] = {0}, spikes, previous, unused[3], converted, paths[2];
    TYPED(State) state, to, sums;
    int32_t events[LARGEST_TILE];
    int64_t loaded[2] = {-1, 0};
    Tile tile;
    while (take_tile(scan, &tile)) {
        int64_t width = tile.width;
        TYPED(load_constants)(c, each, scan, &tile, loaded);
        TYPED(load_state)(&state, scan->initial, scan, &tile);
        TYPED(load_state)(&to, scan->grad_final, scan, &tile);
        TYPED(load_state)(&sums, 0, scan, &tile);
        for (int64_t i = 0; i < width; i++)
            events[i] = scan->events ? scan->events[tile.row * scan->inner + tile.column + i] : -1;
        int64_t input = tile.row * scan->current_stride_outer + tile.column;
        int64_t of_grad = tile.row * scan->grad_stride_outer + tile.column;
        int64_t row = tile.row * scan->steps * scan->inner + tile.column;

        for (int64_t t = 0; t < (chunks - 1) * CHUNK; t++) {
            if (t % CHUNK == 0)
                TYPED(copy_state)(&starts[t / CHUNK], &state, width);
            int64_t place = input + t * scan->current_stride_time;
            const REAL *x = TYPED(read)(scan->storage, scan->current, place, width, converted);
            TYPED(step)(width, c, each, x, &state, unused[0], unused[1], unused[2], spikes);
        }
        TYPED(copy_state)(&starts[chunks - 1], &state, width);

        for (int64_t chunk = chunks - 1, end = scan->steps; chunk >= 0; end = chunk-- * CHUNK) {
            TYPED(copy_state)(&state, &starts[chunk], width);
            for (int64_t t = chunk * CHUNK; t < end; t++) {
                int64_t place = input + t * scan->current_stride_time;
                const REAL *x = TYPED(read)(scan->storage, scan->current, place, width, converted);
                TYPED(step)(width, c, each, x, &state, learn ? synapses[t % CHUNK] : unused[0], membranes[t % CHUNK],
                            rule == 0 ? traces[t % CHUNK] : unused[1], spikes);
            }
            for (int64_t t = end - 1; t >= chunk * CHUNK; t--) {
                int64_t k = t % CHUNK, output = row + t * scan->inner;
                if (k == 0)
                    TYPED(copy)(previous, starts[chunk].u, width);
                else
                    for (int64_t i = 0; i < width; i++) {
                        REAL threshold = c[THRESHOLD][each ? i : 0];
                        previous[i] = membranes[k - 1][i] > threshold ? 0 : membranes[k - 1][i];
                    }
                int64_t place = of_grad + t * scan->grad_stride_time;
                const REAL *grad = TYPED(read)(scan->spike_storage, scan->grad_spikes, place, width, converted);
                REAL *weight_path = TYPED(begin)(scan, scan->weight_path, output, paths[0]);
                REAL *time_path = TYPED(begin)(scan, scan->time_path, output, paths[1]);
                TYPED(step_back)(width, c, each, rule, learn, grad, previous, synapses[k], membranes[k], traces[k],
                                 events, t, &to, &sums, weight_path, time_path);
                TYPED(finish)(scan, scan->weight_path, output, width, weight_path);
                TYPED(finish)(scan, scan->time_path, output, width, time_path);
            }
        }
        TYPED(store_state)(scan->grad_initial, &to, scan, &tile);
        TYPED(store_state)(scan->grad_constants, &sums, scan, &tile);
    }
}

EVERY_VECTOR_WIDTH
static void TYPED(backward_worker)(void *argument)
{
    Scan *scan = argument;
    int learn = scan->grad_constants != 0;
    if (scan->rule == 3)
        TYPED(backward)(scan, 1, 3, 1);
    else if (scan->rule == 0 && learn)
        TYPED(backward)(scan, 1, 0, 1);
    else if (scan->rule == 0 && scan->each)
        TYPED(backward)(scan, 1, 0, 0);
    else if (scan->rule == 0)
        TYPED(backward)(scan, 0, 0, 0);
    else if (learn)
        TYPED(backward)(scan, 1, scan->rule, 1);
    else if (scan->each)
        TYPED(backward)(scan, 1, scan->rule, 0);
    else
        TYPED(backward)(scan, 0, scan->rule, 0);
}

void TYPED(srm_scan_forward)(const Scan *given, RunParallel *run_parallel, unsigned threads)
{
    Scan scan = *given; /* whose counters change */
    run(TYPED(forward_worker), &scan, run_parallel, threads);
}

void TYPED(srm_scan_backward)(const Scan *given, RunParallel *run_parallel, unsigned threads)
{
    Scan scan = *given;
    run(TYPED(backward_worker), &scan, run_parallel, threads);
}

#endif
