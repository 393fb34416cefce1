/* Threads that share the parts of one piece of work. */

#include <stddef.h>

/* Most parts that work may be cut into. */
enum { MOST_PARTS = 1 << 20 };

/* Do `work(given, part)` once for each part from 0 on, by up to `threads` threads, this one among them; returns when
   all is done. Which thread does a part is left to chance, so that no part waits for a thread that is not running. */
void share(void (*work)(const void *given, size_t part), const void *given, size_t parts, int threads);
