/* Pseudo-random numbers; reorder/chance.py defines them. */
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

static uint64_t mixed(uint64_t x)
{
  x += UINT64_C(0x9E3779B97F4A7C15);
  x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
  x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
  return x ^ x >> 31;
}

/* Hash each user's seed [users] (0 for NaN) with `offset` and with each row [users, width] into `drawn`
 * [users, width], numbers between 0 and 1. */
EXPORT int64_t draw_uniform(int64_t users, int64_t width, int64_t offset, const double* seeds, const int64_t* rows,
                            double* drawn)
{
  for (int64_t user = 0; user < users; ++user) {
    const uint64_t seed = seeds[user] == seeds[user] ? (uint64_t)seeds[user] : 0;
    const uint64_t first = mixed(seed + (uint64_t)offset);
    for (int64_t cell = user * width; cell < (user + 1) * width; ++cell)
      drawn[cell] = ((double)(int64_t)(mixed(first ^ (uint64_t)rows[cell]) >> 11) + 0.5) * 0x1p-53;
  }
  return 0;
}
