/* Rows of tables; and lists of catalogue rows for each user: the latest ones seen, and the candidates that are kept.
 *
 * Results equal those of stores/memory_mapped.py, rules/kept.py and reorder/steps.py in NumPy, bit for bit. All arrays
 * are C-contiguous; float is float32.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* Copy rows of a table, of `size` bytes each.
 *
 *   rows      number of rows of the table
 *   at        [count]: which are wanted; return how many are not among them, and have undefined contents
 *   found     [count] rows */
EXPORT int64_t take_rows(int64_t rows, int64_t size, int64_t count, const char* table, const int64_t* at, char* found)
{
  int64_t beyond = 0;
  for (int64_t index = 0; index < count; ++index) {
    if ((uint64_t)at[index] >= (uint64_t)rows)
      ++beyond;
    else if (size == 8) /* a size that the compiler knows takes one instruction */
      memcpy(found + index * 8, table + at[index] * 8, 8);
    else if (size == 4)
      memcpy(found + index * 4, table + at[index] * 4, 4);
    else
      memcpy(found + index * size, table + at[index] * size, (size_t)size);
  }
  return beyond;
}

/* Copy the same rows of several tables, as take_rows does.
 *
 *   arrays    the tables, then what is found of each
 *   sizes     [tables, 2]: number of rows, and bytes of a row */
EXPORT int64_t take_from(int64_t tables, int64_t count, char* const* arrays, const int64_t* sizes, const int64_t* at)
{
  int64_t beyond = 0;
  for (int64_t table = 0; table < tables; ++table)
    beyond += take_rows(sizes[2 * table], sizes[2 * table + 1], count, arrays[table], at, arrays[tables + table]);
  return beyond;
}

/* Copy the end of each user's list of rows, left aligned and padded.
 *
 *   lists     number of lists
 *   offsets   [lists + 1]: where each begins in `listed`
 *   of        [users]: each user's list; return how many are not among the lists
 *   found     [users, length]
 *   counts    [users]: how many of them are real */
EXPORT int64_t latest_rows(int64_t users, int64_t length, int64_t lists, int64_t pad, const int64_t* offsets,
                           const int32_t* listed, const int64_t* of, int64_t* found, int32_t* counts)
{
  int64_t beyond = 0;
  for (int64_t user = 0; user < users; ++user, found += length) {
    int64_t count = 0, end = 0;
    if ((uint64_t)of[user] < (uint64_t)lists) {
      end = offsets[of[user] + 1];
      count = end - offsets[of[user]];
      if (count > length) count = length;
    } else {
      ++beyond;
    }
    for (int64_t at = 0; at < count; ++at) found[at] = listed[end - count + at];
    for (int64_t at = count; at < length; ++at) found[at] = pad;
    counts[user] = (int32_t)count;
  }
  return beyond;
}

/* In settings.py: reasons for which a candidate is kept, or not. */
enum { KEPT = 0, BEYOND_KEPT = 2 };

/* Keep the first candidates that pass every rule.
 *
 *   width, most            number of candidates of a user, and how many are kept
 *   items                  length of `reasons`, the last of which is the pad row's
 *   rows, scores, source   [users, width]
 *   reasons                [items]: of every row; return how many candidates are not among them
 *   kept_…                 [users, most]; empty slots hold the pad row, and 0
 *   reason                 [users, width] */
EXPORT int64_t keep_first(int64_t users, int64_t width, int64_t most, int64_t items, const int64_t* rows,
                          const float* scores, const int32_t* source, const int32_t* reasons, int64_t* kept_row,
                          int64_t* kept_index, float* kept_score, int32_t* kept_source, int32_t* reason)
{
  int64_t beyond = 0;
  for (int64_t user = 0; user < users; ++user) {
    const int64_t begin = user * width, first = user * most;
    int64_t kept = 0;
    for (int64_t at = 0; at < width; ++at) {
      const int64_t row = rows[begin + at];
      int32_t why = BEYOND_KEPT;
      if ((uint64_t)row < (uint64_t)items)
        why = reasons[row];
      else
        ++beyond;
      if (why == KEPT && kept < most) {
        kept_row[first + kept] = row;
        kept_index[first + kept] = at;
        kept_score[first + kept] = scores[begin + at];
        kept_source[first + kept] = source[begin + at];
        ++kept;
      } else if (why == KEPT) {
        why = BEYOND_KEPT;
      }
      reason[begin + at] = why;
    }
    for (; kept < most; ++kept) {
      kept_row[first + kept] = items - 1;
      kept_index[first + kept] = 0;
      kept_score[first + kept] = 0;
      kept_source[first + kept] = 0;
    }
  }
  return beyond;
}

/* Copy scores; those of the pad row, and NaN, become -INFINITY. */
EXPORT int64_t blank_scores(int64_t cells, int64_t pad, const float* scores, const int64_t* rows, float* blanked)
{
  for (int64_t at = 0; at < cells; ++at)
    blanked[at] = rows[at] == pad || scores[at] != scores[at] ? -INFINITY : scores[at];
  return 0;
}
