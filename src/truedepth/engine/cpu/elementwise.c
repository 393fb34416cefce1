/* Norms and activations, each row and each number for itself. */

#include "lanes.h"
#include "pool.h"

typedef struct {
    type of;
    const void *x;
    const float *gain;
    void *y;
    size_t rows, size, parts;
    float epsilon;
} norm_work;

INLINED void normalise_row(type of, const norm_work *work, size_t row) {
    const void *from = offset(of, work->x, row * work->size);
    void *to = (void *)offset(of, work->y, row * work->size);
    lane squares = {0};
    for (size_t at = 0; at < work->size; at += LANE) {
        const lane value = load_some(of, from, at, work->size - at);
        squares += value * value;
    }
    const float scale = 1 / sqrtf(sum_of(squares) / work->size + work->epsilon);
    for (size_t at = 0; at < work->size; at += LANE) {
        const size_t count = work->size - at;
        const lane gain = load_some(FLOAT32, work->gain, at, count);
        save_some(of, to, at, count, gain * (load_some(of, from, at, count) * scale));
    }
}

static void norm_part(const void *given, size_t part) {
    const norm_work *work = given;
    const size_t to = work->rows * (part + 1) / work->parts;
    for (size_t row = work->rows * part / work->parts; row < to; row++)
        if (work->of == FLOAT32)
            normalise_row(FLOAT32, work, row);
        else
            normalise_row(BFLOAT16, work, row);
}

void normalise(int of, const void *x, const float *gain, void *y, size_t rows, size_t size, float epsilon, int threads) {
    const size_t parts = rows * size > WORTH_THREADS && rows > (size_t)threads ? threads : 1;
    const norm_work work = {of, x, gain, y, rows, size, parts, epsilon};
    share(norm_part, &work, parts, threads);
}

typedef enum { SILU, GELU_TANH } activation;

typedef struct {
    type of;
    activation function;
    const void *x;
    void *y;
    size_t count, parts;
} activation_work;

INLINED lane activated(activation function, lane x) {
    if (function == GELU_TANH) return x * 0.5f * (1 + hyperbolic_tangent(0.79788456f * (x + 0.044715f * x * x * x)));
    const lane power = exponential(-magnitude(x));
    return x * choose((lane_bits)(x < 0), power, all(1)) / (1 + power);
}

INLINED void activate_all(type of, activation function, const activation_work *work, size_t from, size_t to) {
    for (size_t at = from; at < to; at += LANE)
        save_some(of, work->y, at, to - at, activated(function, load_some(of, work->x, at, to - at)));
}

static void activation_part(const void *given, size_t part) {
    const activation_work *work = given;
    const size_t from = work->count * part / work->parts, to = work->count * (part + 1) / work->parts;
#define ACTIVATE(kind, named) \
    if (work->of == kind && work->function == named) activate_all(kind, named, work, from, to);
    ACTIVATE(FLOAT32, SILU) ACTIVATE(FLOAT32, GELU_TANH) ACTIVATE(BFLOAT16, SILU) ACTIVATE(BFLOAT16, GELU_TANH)
#undef ACTIVATE
}

void activate(int of, int function, const void *x, void *y, size_t count, int threads) {
    const activation_work work = {of, function, x, y, count, count > WORTH_THREADS / 8 ? threads : 1};
    share(activation_part, &work, work.parts, threads);
}
