/* A pool of threads that suits a machine on which other programs run too.

   A thread that waits looks for a while, since a decoder's next product is some microseconds away, but hands its
   processor to whoever else wants it, and soon sleeps. OpenMP's threads spin instead: two programs on one machine then
   spend their time waiting for threads that the other keeps from running. */

#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

enum {
    MOST_THREADS = 256,
    LOOKS = 400,            /* glances before the processor is handed over in between */
    NANOSECONDS = 200000,   /* of waiting before a thread sleeps */
};

/* The work at hand. It stands still from its publication in `state` until all of its parts are done. */
static void (*work_of)(const void *, size_t);
static const void *given_of;
static _Atomic int threads_of;

/* Which work it is, into how many parts it is cut, and the next part to be done: 24, 20 and 20 bits. All in one, so
   that a part of one work cannot be taken for a part of the next. */
static _Atomic uint64_t state;
static _Atomic size_t done;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t published = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
static _Atomic int sleepers;
static _Atomic bool caller_sleeps, busy;
static int workers;

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* Whether work other than `seen` turned up before it was time to sleep. */
static bool look_for_work(uint64_t seen) {
    for (int look = 0; look < LOOKS; look++) {
        if (atomic_load_explicit(&state, memory_order_relaxed) >> 40 != seen) return true;
        pause_briefly();
    }
    for (const int64_t until = now() + NANOSECONDS; now() < until; sched_yield())
        if (atomic_load_explicit(&state, memory_order_relaxed) >> 40 != seen) return true;
    return false;
}

/* Do parts of the work at hand until none is left to begin; returns which work that was. */
static uint64_t take_part(int worker) {
    for (;;) {
        const uint64_t seen = atomic_load(&state);
        /* The fields of a work with parts left to begin stand still; those of a finished one are not looked at. */
        if ((seen & (MOST_PARTS - 1)) >= (seen >> 20 & (MOST_PARTS - 1))) return seen >> 40;
        if (worker >= atomic_load(&threads_of)) return seen >> 40;
        uint64_t mine = seen;
        if (!atomic_compare_exchange_weak(&state, &mine, seen + 1)) continue;
        const size_t parts = seen >> 20 & (MOST_PARTS - 1);
        work_of(given_of, seen & (MOST_PARTS - 1));
        if (atomic_fetch_add(&done, 1) + 1 == parts && atomic_load(&caller_sleeps)) {
            pthread_mutex_lock(&mutex);
            pthread_cond_signal(&finished);
            pthread_mutex_unlock(&mutex);
        }
    }
}

static void *run_worker(void *number) {
    uint64_t seen = take_part((int)(intptr_t)number);
    for (;;) {
        if (!look_for_work(seen)) {
            pthread_mutex_lock(&mutex);
            atomic_fetch_add(&sleepers, 1);
            while (atomic_load(&state) >> 40 == seen) pthread_cond_wait(&published, &mutex);
            atomic_fetch_sub(&sleepers, 1);
            pthread_mutex_unlock(&mutex);
        }
        seen = take_part((int)(intptr_t)number);
    }
    return NULL;
}

/* A forked child has none of its parent's threads. */
static void forget_workers(void) {
    workers = 0;
    atomic_store(&sleepers, 0);
    atomic_store(&busy, false);
    pthread_mutex_init(&mutex, NULL);
    pthread_cond_init(&published, NULL);
    pthread_cond_init(&finished, NULL);
}

/* Have workers 1 to threads - 1; those that cannot be had are done without. */
static void have_workers(int threads) {
    static bool watched;
    if (!watched) watched = !pthread_atfork(NULL, NULL, forget_workers);
    while (workers + 1 < threads && workers + 1 < MOST_THREADS) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, run_worker, (void *)(intptr_t)(workers + 1))) return;
        pthread_detach(thread);
        workers++;
    }
}

static void wait_until_done(size_t parts) {
    for (int look = 0; look < LOOKS; look++) {
        if (atomic_load(&done) == parts) return;
        pause_briefly();
    }
    for (const int64_t until = now() + NANOSECONDS; now() < until; sched_yield())
        if (atomic_load(&done) == parts) return;
    pthread_mutex_lock(&mutex);
    atomic_store(&caller_sleeps, true);
    while (atomic_load(&done) != parts) pthread_cond_wait(&finished, &mutex);
    atomic_store(&caller_sleeps, false);
    pthread_mutex_unlock(&mutex);
}

void share(void (*work)(const void *given, size_t part), const void *given, size_t parts, int threads) {
    /* Another thread of this program may be using the pool: it is not waited for. */
    if (threads < 2 || parts < 2 || parts >= MOST_PARTS || atomic_exchange(&busy, true)) {
        for (size_t part = 0; part < parts; part++) work(given, part);
        return;
    }
    have_workers(threads);
    work_of = work, given_of = given, threads_of = threads;
    atomic_store(&done, 0);
    atomic_store(&state, ((atomic_load(&state) >> 40) + 1) << 40 | (uint64_t)parts << 20);
    if (atomic_load(&sleepers)) {
        pthread_mutex_lock(&mutex);
        pthread_cond_broadcast(&published);
        pthread_mutex_unlock(&mutex);
    }
    take_part(0);
    wait_until_done(parts);
    atomic_store(&busy, false);
}
