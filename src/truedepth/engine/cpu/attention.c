/* Attention of a few queries over cached entries, and the writing of entries.

   A query's output is summed up in float32 and in one order, however many tokens or masked entries it is computed with:
   a token's numbers are the same bits whether it is decoded or verified. */

#include "lanes.h"
#include "pool.h"

/* Sums that one query's output is added up in at a time. */
enum { SUMS = 8 };

typedef struct {
    type of;
    const void *q, *k, *v, *mask;
    float *scores;
    void *y;
    const int64_t *shape, *strides;
    float scale, cap;
    size_t parts;
} attention_work;

/* Scores to probabilities, not yet divided by their sum, which is returned. There is room for a multiple of LANE. */
INLINED float soften(type of, float *scores, const void *mask, float scale, float cap, size_t span) {
    lane most = all(-INFINITY), total = {0};
    for (size_t s = 0; s < span; s += LANE) {
        lane score = *(const lane *)(scores + s) * scale;
        if (cap) score = cap * hyperbolic_tangent(score / cap);
        if (mask) score += load_some(of, mask, s, span - s);
        for (size_t at = span - s; at < LANE; at++) score[at] = -INFINITY;
        *(lane *)(scores + s) = score;
        most = choose((lane_bits)(score > most), score, most);
    }
    float highest = -INFINITY;
    for (size_t at = 0; at < LANE; at++) highest = most[at] > highest ? most[at] : highest;
    for (size_t s = 0; s < span; s += LANE) {
        const lane power = exponential(*(const lane *)(scores + s) - highest);
        *(lane *)(scores + s) = power;
        total += power;
    }
    return sum_of(total);
}

/* One query over all entries. `size` is a constant wherever this is called. */
INLINED void attend_one(type of, size_t size, const void *restrict q, const void *restrict k, const void *restrict v,
                        const void *restrict mask, float *restrict scores, void *restrict y, size_t span,
                        size_t k_entry, size_t v_entry, float scale, float cap) {
    for (size_t s = 0; s < span; s++) {
        lane products = {0};
#pragma GCC unroll 16
        for (size_t at = 0; at < size; at += LANE) products += load(of, q, at) * load(of, k, s * k_entry + at);
        scores[s] = sum_of(products);
    }
    const float total = soften(of, scores, mask, scale, cap, span);
#pragma GCC unroll 16
    for (size_t part = 0; part < size; part += SUMS * LANE) {
        const size_t count = size - part < SUMS * LANE ? (size - part) / LANE : SUMS;
        lane sums[SUMS] = {{0}};
        for (size_t s = 0; s < span; s++)
#pragma GCC unroll 8
            for (size_t at = 0; at < count; at++) sums[at] += scores[s] * load(of, v, s * v_entry + part + at * LANE);
#pragma GCC unroll 8
        for (size_t at = 0; at < count; at++) save(of, y, part + at * LANE, sums[at] / total);
    }
}

INLINED void attend_row(type of, const attention_work *work, int64_t at) {
    const int64_t heads = work->shape[1], kv_heads = work->shape[2], tokens = work->shape[3], span = work->shape[4],
                  size = work->shape[5], *strides = work->strides;
    const int64_t row = at / (heads * tokens), head = at / tokens % heads, token = at % tokens,
                  kv_head = head * kv_heads / heads;
    const void *q = offset(of, work->q, row * strides[0] + head * strides[1] + token * strides[2]),
               *k = offset(of, work->k, row * strides[3] + kv_head * strides[4]),
               *v = offset(of, work->v, row * strides[6] + kv_head * strides[7]),
               *mask = work->mask ? offset(of, work->mask, row * strides[9] + token * span) : NULL;
    float *scores = work->scores + at * (span + LANE);
    void *y = (void *)offset(of, work->y, ((row * tokens + token) * heads + head) * size);
#define ATTEND(size) attend_one(of, size, q, k, v, mask, scores, y, span, strides[5], strides[8], work->scale, work->cap)
    switch (size) {
    case 64: ATTEND(64); break;
    case 80: ATTEND(80); break;
    case 96: ATTEND(96); break;
    case 128: ATTEND(128); break;
    case 256: ATTEND(256); break;
    default: ATTEND(size); break;
    }
#undef ATTEND
}

static void attention_part(const void *given, size_t part) {
    const attention_work *work = given;
    const int64_t rows = work->shape[0] * work->shape[1] * work->shape[3], to = rows * (part + 1) / work->parts;
    for (int64_t at = rows * part / work->parts; at < to; at++)
        if (work->of == FLOAT32)
            attend_row(FLOAT32, work, at);
        else
            attend_row(BFLOAT16, work, at);
}

void attend(int of, const void *q, const void *k, const void *v, const void *mask, float *scores, void *y,
            const int64_t *shape, const int64_t *strides, float scale, float cap, int threads) {
    const size_t rows = shape[0] * shape[1] * shape[3], most = threads * PARTS;
    const size_t parts = rows * shape[4] * shape[5] <= WORTH_THREADS ? 1 : rows < most ? rows : most;
    const attention_work work = {of, q, k, v, mask, scores, y, shape, strides, scale, cap, parts};
    share(attention_part, &work, parts, threads);
}

/* Entries of new tokens, (batch, heads, tokens, size), into their slots. */
void store(int of, void *held, const void *new, const int64_t *slots, const int64_t *shape, const int64_t *strides) {
    const int64_t batch = shape[0], heads = shape[1], tokens = shape[2], size = shape[3];
    for (int64_t row = 0; row < batch; row++)
        for (int64_t token = 0; token < tokens; token++)
            for (int64_t head = 0; head < heads; head++)
                memcpy((void *)offset(of, held, (slots[row * tokens + token] * heads + head) * size),
                       offset(of, new, row * strides[0] + head * strides[1] + token * strides[2]), size * bytes(of));
}
