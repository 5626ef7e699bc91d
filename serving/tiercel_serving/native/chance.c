/* Numbers that look drawn: reorder/chance.py says what they are. */
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* Mix each user's first number [users] with each row [users, width]; `drawn` [users, width] lies between 0 and 1. */
EXPORT int64_t draw_uniform(int64_t users, int64_t width, const uint64_t* firsts, const int64_t* rows, double* drawn)
{
  for (int64_t user = 0; user < users; ++user)
    for (int64_t cell = user * width; cell < (user + 1) * width; ++cell) {
      uint64_t x = (firsts[user] ^ (uint64_t)rows[cell]) + UINT64_C(0x9E3779B97F4A7C15);
      x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
      x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
      x ^= x >> 31;
      drawn[cell] = ((double)(int64_t)(x >> 11) + 0.5) * 0x1p-53;
    }
  return 0;
}
