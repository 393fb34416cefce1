/* What decoding on a CPU spends its time on, for few tokens at once. `kernels.py` compiles this file and says what each
   function is given. Vectors are GCC's and Clang's own, so that one text serves every instruction set.

   Every output is summed up in one order, however many rows, tokens or masked entries it is computed with: a token's
   numbers are the same bits whether it is decoded or verified. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A tile of ROWS rows and one panel of LANES vectors keeps all of its sums in registers. */
#if defined(__AVX512F__)
enum { LANE = 16, LANES = 2, ROWS = 12 };
#elif defined(__AVX__)
enum { LANE = 8, LANES = 2, ROWS = 6 };
#elif defined(__ARM_NEON)
enum { LANE = 4, LANES = 4, ROWS = 6 };
#else
enum { LANE = 4, LANES = 2, ROWS = 6 };
#endif

/* A panel is so many outputs of a product, their weights interleaved. */
enum { PANEL = LANE * LANES };

/* Sums that one query's output is added up in at a time. */
enum { SUMS = 8 };

typedef float lane __attribute__((vector_size(LANE * 4), aligned(4), may_alias));

int panel(void) { return PANEL; }

/* `rows` is a constant wherever this is called, so that every loop but that over k is unrolled. */
static inline __attribute__((always_inline)) void tile(size_t rows, const float *restrict x,
                                                       const float *restrict weight, const float *restrict bias,
                                                       float *restrict y, size_t k_size, size_t stride) {
    lane sums[ROWS][LANES] = {{{0}}};
    for (size_t k = 0; k < k_size; k++)
#pragma GCC unroll 12
        for (size_t row = 0; row < rows; row++)
#pragma GCC unroll 12
            for (size_t at = 0; at < LANES; at++)
                sums[row][at] += x[row * k_size + k] * *(const lane *)(weight + k * PANEL + at * LANE);
#pragma GCC unroll 12
    for (size_t row = 0; row < rows; row++)
#pragma GCC unroll 12
        for (size_t at = 0; at < LANES; at++) {
            const lane added = bias ? *(const lane *)(bias + at * LANE) : (lane){0};
            *(lane *)(y + row * stride + at * LANE) = sums[row][at] + added;
        }
}

static void tile_of(size_t rows, const float *x, const float *weight, const float *bias, float *y, size_t k_size,
                    size_t stride) {
#define TILE(count) case count: tile(count, x, weight, bias, y, k_size, stride); break;
    switch (rows) {
        TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#if defined(__AVX512F__)
        TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#endif
    }
#undef TILE
}

void product(const float *x, const float *weight, const float *bias, float *y, size_t rows, size_t k_size,
             size_t panels, int threads) {
    const size_t stride = panels * PANEL, tiles = (rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size_t p = 0; p < panels; p++)
        for (size_t t = 0; t < tiles; t++) {
            const size_t from = rows * t / tiles, to = rows * (t + 1) / tiles;
            tile_of(to - from, x + from * k_size, weight + p * PANEL * k_size, bias ? bias + p * PANEL : NULL,
                    y + from * stride + p * PANEL, k_size, stride);
        }
}

/* Below some ten microseconds of work, waking the other threads costs more than they save. */
enum { WORTH_THREADS = 1 << 18 };

void normalise(const float *x, const float *gain, float *y, size_t rows, size_t size, float epsilon, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * size > WORTH_THREADS)
    for (size_t row = 0; row < rows; row++) {
        const float *from = x + row * size;
        float *to = y + row * size, squares = 0;
#pragma omp simd reduction(+ : squares)
        for (size_t at = 0; at < size; at++) squares += from[at] * from[at];
        const float scale = 1 / sqrtf(squares / size + epsilon);
#pragma omp simd
        for (size_t at = 0; at < size; at++) to[at] = gain[at] * (from[at] * scale);
    }
}

/* e^x for x <= 0, to two units in the last place: 2^n times a polynomial over the remainder. */
static inline float exponential(float x) {
    const float n = rintf(x * 1.44269504f);
    const float rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1;
    const int32_t bits = ((int32_t)(n < -127 ? -127 : n) + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -87 ? 0 : sum * power;
}

/* Scores to probabilities, not yet divided by their sum, which is returned. There is room for a multiple of LANE. */
static float soften(float *scores, const float *mask, float scale, size_t span) {
    float most = -INFINITY, total = 0;
    for (size_t s = span; s % LANE; s++) scores[s] = -INFINITY;
#pragma omp simd reduction(max : most)
    for (size_t s = 0; s < span; s++) {
        const float score = mask ? scores[s] * scale + mask[s] : scores[s] * scale;
        scores[s] = score;
        most = score > most ? score : most;
    }
#pragma omp simd reduction(+ : total)
    for (size_t s = 0; s < (span + LANE - 1) / LANE * LANE; s++) {
        const float power = exponential(scores[s] - most);
        scores[s] = power;
        total += power;
    }
    return total;
}

/* One query over all entries. `size` is a constant wherever this is called. */
static inline __attribute__((always_inline)) void attend_one(size_t size, const float *restrict q,
                                                             const float *restrict k, const float *restrict v,
                                                             const float *restrict mask, float *restrict scores,
                                                             float *restrict y, size_t span, size_t k_entry,
                                                             size_t v_entry, float scale) {
    for (size_t s = 0; s < span; s++) {
        const float *key = k + s * k_entry;
        lane products = {0};
#pragma GCC unroll 16
        for (size_t at = 0; at < size; at += LANE) products += *(const lane *)(q + at) * *(const lane *)(key + at);
        float sum = 0;
#pragma GCC unroll 16
        for (size_t at = 0; at < LANE; at++) sum += products[at];
        scores[s] = sum;
    }
    const float total = soften(scores, mask, scale, span);
#pragma GCC unroll 16
    for (size_t part = 0; part < size; part += SUMS * LANE) {
        const size_t count = size - part < SUMS * LANE ? (size - part) / LANE : SUMS;
        lane sums[SUMS] = {{0}};
        for (size_t s = 0; s < span; s++)
#pragma GCC unroll 8
            for (size_t at = 0; at < count; at++)
                sums[at] += scores[s] * *(const lane *)(v + s * v_entry + part + at * LANE);
#pragma GCC unroll 8
        for (size_t at = 0; at < count; at++) *(lane *)(y + part + at * LANE) = sums[at] / total;
    }
}

static void attend_one_of(size_t size, const float *q, const float *k, const float *v, const float *mask,
                          float *scores, float *y, size_t span, size_t k_entry, size_t v_entry, float scale) {
    switch (size) {
    case 64: attend_one(64, q, k, v, mask, scores, y, span, k_entry, v_entry, scale); break;
    case 80: attend_one(80, q, k, v, mask, scores, y, span, k_entry, v_entry, scale); break;
    case 96: attend_one(96, q, k, v, mask, scores, y, span, k_entry, v_entry, scale); break;
    case 128: attend_one(128, q, k, v, mask, scores, y, span, k_entry, v_entry, scale); break;
    case 256: attend_one(256, q, k, v, mask, scores, y, span, k_entry, v_entry, scale); break;
    default: attend_one(size, q, k, v, mask, scores, y, span, k_entry, v_entry, scale); break;
    }
}

void attend(const float *q, const float *k, const float *v, const float *mask, float *scores, float *y,
            const int64_t *shape, const int64_t *strides, float scale, int threads) {
    const int64_t batch = shape[0], heads = shape[1], kv_heads = shape[2], tokens = shape[3], span = shape[4],
                  size = shape[5], rows = batch * heads * tokens;
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * span * size > WORTH_THREADS)
    for (int64_t at = 0; at < rows; at++) {
        const int64_t row = at / (heads * tokens), head = at / tokens % heads, token = at % tokens,
                      kv_head = head * kv_heads / heads;
        attend_one_of(size, q + row * strides[0] + head * strides[1] + token * strides[2],
                      k + row * strides[3] + kv_head * strides[4], v + row * strides[6] + kv_head * strides[7],
                      mask ? mask + row * strides[9] + token * span : NULL, scores + at * (span + LANE),
                      y + ((row * tokens + token) * heads + head) * size, span, strides[5], strides[8], scale);
    }
}

/* Entries of new tokens, (batch, heads, tokens, size), into their slots. */
void store(float *held, const float *new, const int64_t *slots, const int64_t *shape, const int64_t *strides) {
    const int64_t batch = shape[0], heads = shape[1], tokens = shape[2], size = shape[3];
    for (int64_t row = 0; row < batch; row++)
        for (int64_t token = 0; token < tokens; token++)
            for (int64_t head = 0; head < heads; head++)
                memcpy(held + (slots[row * tokens + token] * heads + head) * size,
                       new + row * strides[0] + head * strides[1] + token * strides[2], size * sizeof(float));
}
