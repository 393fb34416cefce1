/* Vectors of float32 numbers that stand in memory as float32 or bfloat16. They are GCC's and Clang's own, so that one
   text serves every instruction set. */

#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Numbers of a vector. */
#if defined(__AVX512F__)
enum { LANE = 16 };
#elif defined(__AVX__)
enum { LANE = 8 };
#else
enum { LANE = 4 };
#endif

/* Below some ten microseconds of work, handing it to other threads costs more than they save. */
enum { WORTH_THREADS = 1 << 18 };

/* Parts of a work for each thread: enough that a thread which is held up leaves its share to others. */
enum { PARTS = 4 };

/* What an array holds. It is a constant wherever a function that is always inlined is given one. */
typedef enum { FLOAT32, BFLOAT16 } type;

typedef float lane __attribute__((vector_size(LANE * 4), aligned(4), may_alias));
typedef uint32_t lane_bits __attribute__((vector_size(LANE * 4), aligned(4), may_alias));
typedef uint16_t half_lane __attribute__((vector_size(LANE * 2), aligned(2), may_alias));

#define INLINED static inline __attribute__((always_inline))

INLINED size_t bytes(type of) { return of == FLOAT32 ? 4 : 2; }

INLINED const void *offset(type of, const void *array, int64_t at) { return (const char *)array + at * (int64_t)bytes(of); }

INLINED lane load(type of, const void *array, size_t at) {
    if (of == FLOAT32) return *(const lane *)((const float *)array + at);
    const half_lane half = *(const half_lane *)((const uint16_t *)array + at);
    return (lane)(__builtin_convertvector(half, lane_bits) << 16);
}

/* To the nearest, ties to even; not a number stays so. */
INLINED half_lane narrow(lane value) {
    const lane_bits bits = (lane_bits)value, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const lane_bits is_nan = (lane_bits)(value != value);
    return __builtin_convertvector((is_nan & (bits >> 16 | 64)) | (~is_nan & rounded), half_lane);
}

INLINED void save(type of, void *array, size_t at, lane value) {
    if (of == FLOAT32)
        *(lane *)((float *)array + at) = value;
    else
        *(half_lane *)((uint16_t *)array + at) = narrow(value);
}

/* The same where only `count` of a lane's numbers are there; the others are 0. */
INLINED lane load_some(type of, const void *array, size_t at, size_t count) {
    if (count >= LANE) return load(of, array, at);
    float room[LANE] = {0};
    memcpy(room, offset(of, array, at), count * bytes(of));
    return load(of, room, 0);
}

INLINED void save_some(type of, void *array, size_t at, size_t count, lane value) {
    if (count >= LANE) {
        save(of, array, at, value);
        return;
    }
    float room[LANE];
    save(of, room, 0, value);
    memcpy((void *)offset(of, array, at), room, count * bytes(of));
}

INLINED float sum_of(lane value) {
    float sum = 0;
#pragma GCC unroll 16
    for (size_t at = 0; at < LANE; at++) sum += value[at];
    return sum;
}

INLINED lane all(float value) { return (lane){0} + value; }

INLINED lane choose(lane_bits condition, lane yes, lane no) {
    return (lane)((condition & (lane_bits)yes) | (~condition & (lane_bits)no));
}

/* e^x for x <= 0, to two units in the last place: 2^n times a polynomial over the remainder. */
INLINED lane exponential(lane x) {
    lane n = x * 1.44269504f;
#pragma GCC unroll 16
    for (size_t at = 0; at < LANE; at++) n[at] = rintf(n[at]);
    n = choose((lane_bits)(n < -127), all(-127), n);
    const lane rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    lane sum = all(1.9875691500e-4f);
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1;
    typedef int32_t lane_ints __attribute__((vector_size(LANE * 4)));
    const lane power = (lane)((lane_bits)(__builtin_convertvector(n, lane_ints) + 127) << 23);
    return choose((lane_bits)(x < -87), all(0), sum * power);
}

INLINED lane magnitude(lane x) { return choose((lane_bits)(x < 0), -x, x); }

/* (e^x - e^-x) / (e^x + e^-x) */
INLINED lane hyperbolic_tangent(lane x) {
    const lane power = exponential(magnitude(x) * -2), value = (1 - power) / (1 + power);
    return choose((lane_bits)(x < 0), -value, value);
}
