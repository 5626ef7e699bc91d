/* Functions that are compiled several times, each for processors with wider vectors; the loader chooses, as BLAS does. */
#ifndef TIERCEL_PROCESSORS_H
#define TIERCEL_PROCESSORS_H

/* A sanitizer is not ready yet when the loader chooses. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12 && !defined(__SANITIZE_ADDRESS__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
/* Whether a vector may hold so many floats. What the compiler makes of wider ones is several times slower. */
#define EIGHT_LANES __builtin_cpu_supports("x86-64-v3")
#define SIXTEEN_LANES __builtin_cpu_supports("x86-64-v4")
/* A function that is called where SIXTEEN_LANES says so. */
#define FOR_SIXTEEN_LANES __attribute__((target("arch=x86-64-v4"), noinline))
#else
#define FOR_EACH_PROCESSOR
#define FOR_SIXTEEN_LANES
#define EIGHT_LANES 0
#define SIXTEEN_LANES 0
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

#endif
