/* Flags of many cells. */
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* Set cells[at[i]] to 1 for n places among `size` cells, and the last cell of each `width` cells (0: of none); return how
 * many places are out of range. */
EXPORT int64_t mark(uint8_t* cells, int64_t size, const int64_t* at, int64_t n, int64_t width)
{
  for (int64_t last = width - 1; width > 0 && last < size; last += width) cells[last] = 1;
  const uint64_t end = (uint64_t)size;
  int64_t index = 0, beyond = 0;
  /* Four at once, as long as all are in range: one branch instead of four. */
  for (; index + 4 <= n; index += 4) {
    const uint64_t one = (uint64_t)at[index], two = (uint64_t)at[index + 1];
    const uint64_t three = (uint64_t)at[index + 2], four = (uint64_t)at[index + 3];
    if (!((one < end) & (two < end) & (three < end) & (four < end))) break;
    cells[one] = cells[two] = cells[three] = cells[four] = 1;
  }
  for (; index < n; ++index) {
    if ((uint64_t)at[index] < end)
      cells[at[index]] = 1;
    else
      ++beyond;
  }
  return beyond;
}
