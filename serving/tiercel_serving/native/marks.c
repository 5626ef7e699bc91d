/* Flags of many cells. */
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* Set cells[at[i]] of `size` cells for n places; return how many places are none of theirs. */
EXPORT int64_t mark(uint8_t* cells, int64_t size, const int64_t* at, int64_t n)
{
  int64_t beyond = 0;
  for (int64_t index = 0; index < n; ++index) {
    if ((uint64_t)at[index] < (uint64_t)size)
      cells[at[index]] = 1;
    else
      ++beyond;
  }
  return beyond;
}
