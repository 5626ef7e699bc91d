/* Functions compiled for several generations of processors; the dynamic loader chooses the version, as BLAS does. */
#ifndef TIERCEL_PROCESSORS_H
#define TIERCEL_PROCESSORS_H

/* Sanitizers are not initialised yet when the loader chooses. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12 && !defined(__SANITIZE_ADDRESS__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
/* Whether the processor has vectors of so many floats. GCC's code for wider ones than it has is several times slower. */
#define EIGHT_LANES __builtin_cpu_supports("x86-64-v3")
#define SIXTEEN_LANES __builtin_cpu_supports("x86-64-v4")
/* For a function that is called only if SIXTEEN_LANES is true. */
#define FOR_SIXTEEN_LANES __attribute__((target("arch=x86-64-v4"), noinline))
#else
#define FOR_EACH_PROCESSOR
#define FOR_SIXTEEN_LANES
#define EIGHT_LANES 0
#define SIXTEEN_LANES 0
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

#endif
