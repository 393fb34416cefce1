/* Products of a few rows with a weight whose rows are interleaved. Each weight is read once for all rows.

   Every output is summed up in float32 and in one order, however many rows it is computed with: a token's numbers are
   the same bits whether it is decoded or verified. */

#include "lanes.h"
#include "pool.h"

#include <stdlib.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

/* A tile of ROWS rows and one panel of LANES vectors keeps all of its sums in registers. */
#if defined(__AVX512F__)
enum { LANES = 2, ROWS = 12 };
#elif defined(__ARM_NEON)
enum { LANES = 4, ROWS = 6 };
#else
enum { LANES = 2, ROWS = 6 };
#endif

/* A panel is so many outputs of a product, their weights interleaved. */
enum { PANEL = LANE * LANES };

int panel(void) { return PANEL; }

typedef struct {
    type of;
    const void *x, *weight;
    const void *bias;
    void *y;
    size_t rows, k_size, panels, parts;
} product_work;

/* A panel of bfloat16 holds the weights of two k side by side. Two numbers of x are multiplied with them: as they are
   where the processor has products of such pairs, else made wide before. */
#if defined(__AVX512BF16__)
typedef uint32_t pair;
#define ADD_PAIR(sum, x, at, weights) \
    (sum) = (lane)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)((lane_bits){0} + (x)[at]), (__m512bh)(weights))
#else
typedef struct { float first, second; } pair;
#define ADD_PAIR(sum, x, at, weights) \
    (sum) += (x)[at].first * (lane)((weights) << 16), (sum) += (x)[at].second * (lane)((weights) & 0xffff0000u)
#endif

/* `rows` is a constant wherever this is called, so that every loop but that over k is unrolled. */
INLINED void tile(type of, size_t rows, const product_work *work, size_t row_from, size_t p) {
    const size_t k_size = work->k_size, steps = of == FLOAT32 ? k_size : k_size / 2, stride = work->panels * PANEL;
    const float *restrict x = (const float *)work->x + row_from * k_size;
    const pair *restrict pairs = (const pair *)work->x + row_from * steps;
    const uint32_t *restrict weight = (const uint32_t *)work->weight + p * PANEL * steps;
    lane sums[ROWS][LANES] = {{{0}}};
    for (size_t k = 0; k < steps; k++) {
        lane_bits weights[LANES];
#pragma GCC unroll 12
        for (size_t at = 0; at < LANES; at++) weights[at] = *(const lane_bits *)(weight + k * PANEL + at * LANE);
        /* Rows outside, so that one number of x is in a register at a time. */
#pragma GCC unroll 12
        for (size_t row = 0; row < rows; row++)
#pragma GCC unroll 12
            for (size_t at = 0; at < LANES; at++)
                if (of == FLOAT32)
                    sums[row][at] += x[row * steps + k] * (lane)weights[at];
                else
                    ADD_PAIR(sums[row][at], pairs, row * steps + k, weights[at]);
    }
#pragma GCC unroll 12
    for (size_t at = 0; at < LANES; at++) {
        const lane added = work->bias ? load(of, work->bias, p * PANEL + at * LANE) : (lane){0};
#pragma GCC unroll 12
        for (size_t row = 0; row < rows; row++)
            save(of, work->y, (row_from + row) * stride + p * PANEL + at * LANE, sums[row][at] + added);
    }
}

INLINED void tile_of(type of, size_t rows, const product_work *work, size_t row_from, size_t p) {
#define TILE(count) case count: tile(of, count, work, row_from, p); break;
    switch (rows) {
        TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#if defined(__AVX512F__)
        TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#endif
    }
#undef TILE
}

static void product_part(const void *given, size_t part) {
    const product_work *work = given;
    const size_t tiles = (work->rows + ROWS - 1) / ROWS, to = work->panels * (part + 1) / work->parts;
    for (size_t p = work->panels * part / work->parts; p < to; p++)
        for (size_t t = 0; t < tiles; t++) {
            const size_t row = work->rows * t / tiles, count = work->rows * (t + 1) / tiles - row;
            if (work->of == FLOAT32)
                tile_of(FLOAT32, count, work, row, p);
            else
                tile_of(BFLOAT16, count, work, row, p);
        }
}

void product(int of, const void *x, const void *weight, const void *bias, void *y, size_t rows, size_t k_size,
             size_t panels, int threads) {
    const size_t parts = threads * PARTS;
    product_work work = {of, x, weight, bias, y, rows, k_size, panels, panels < parts ? panels : parts};
#if !defined(__AVX512BF16__)
    float *wide = NULL;
    if (of == BFLOAT16) {
        work.x = wide = malloc(rows * k_size * sizeof *wide);
        for (size_t at = 0; at < rows * k_size; at += LANE) {
            const size_t count = rows * k_size - at;
            save_some(FLOAT32, wide, at, count, load_some(BFLOAT16, x, at, count));
        }
    }
#endif
    share(product_part, &work, work.parts, threads);
#if !defined(__AVX512BF16__)
    free(wide);
#endif
}
