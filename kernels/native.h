/* What the C versions share. Each file includes itself with REAL defined, as float and as double: TYPED(name) is then
   name_float or name_double.

   The caller hands in the thread pool that PyTorch has loaded (GOMP_parallel): a second one would spin beside it. */

#include <stdatomic.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && __GNUC__ >= 12
#define EVERY_VECTOR_WIDTH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__gnu_linux__)
#define EVERY_VECTOR_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EVERY_VECTOR_WIDTH
#endif
#define INLINE static inline __attribute__((always_inline))

#define JOIN_NAMES(stem, type) stem##_##type
#define JOIN(stem, type) JOIN_NAMES(stem, type)
#define TYPED(stem) JOIN(stem, REAL)

/* To −1 … 1, by a minimum and a maximum, which vectorise. */
#define DEFINE_CLAMP(type)                  \
    INLINE type clamp_##type(type x)        \
    {                                       \
        type high = x > -1 ? x : -1;        \
        return high < 1 ? high : 1;         \
    }
DEFINE_CLAMP(float)
DEFINE_CLAMP(double)

typedef void RunParallel(void (*worker)(void *), void *argument, unsigned threads, unsigned flags);

static void run(void (*worker)(void *), void *argument, RunParallel *run_parallel, unsigned threads)
{
    if (threads > 1)
        run_parallel(worker, argument, threads, 0);
    else
        worker(argument);
}
