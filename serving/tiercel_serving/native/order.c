/* Sorting of each user's candidates by (score descending, row ascending), and reassigning of scores to a new
 * order.
 *
 * Results equal those of ranked/order.py and reorder/placing.py in NumPy, bit for bit. All arrays are
 * C-contiguous; result arrays that are NULL are left out. Each function returns 0, or -1 if it runs out of
 * memory. float is float32, and no score is NaN.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* ------------------------------------------------------------------------------------------------------------- sorting */

typedef struct {
  uint32_t key, at;
} Entry;

/* Sort by key, ascending and stable (radix sort). `entries` and `spare` may be swapped. */
static void sort_entries(Entry** entries, Entry** spare, int64_t width)
{
  enum { DIGITS = 4, VALUES = 256 };
  uint32_t counts[DIGITS][VALUES] = {{0}};
  for (int64_t at = 0; at < width; ++at)
    for (int digit = 0; digit < DIGITS; ++digit) ++counts[digit][(*entries)[at].key >> 8 * digit & (VALUES - 1)];
  for (int digit = 0; digit < DIGITS; ++digit) {
    uint32_t *begins = counts[digit], sum = 0;
    if (width == 0 || begins[(*entries)[0].key >> 8 * digit & (VALUES - 1)] == width) continue;
    for (int value = 0; value < VALUES; ++value) {
      const uint32_t count = begins[value];
      begins[value] = sum;
      sum += count;
    }
    for (int64_t at = 0; at < width; ++at) {
      const Entry entry = (*entries)[at];
      (*spare)[begins[entry.key >> 8 * digit & (VALUES - 1)]++] = entry;
    }
    Entry* sorted = *spare;
    *spare = *entries;
    *entries = sorted;
  }
}

/* An integer that rises as the score falls; 0 - x makes -0.0 equal to 0.0. */
static uint32_t key_of(float score)
{
  const float negated = 0 - score;
  uint32_t bits;
  memcpy(&bits, &negated, sizeof bits);
  return bits ^ (bits >> 31 ? UINT32_MAX : UINT32_C(1) << 31);
}

static float score_of(uint32_t key)
{
  const uint32_t bits = key ^ (key >> 31 ? UINT32_C(1) << 31 : UINT32_MAX);
  float negated;
  memcpy(&negated, &bits, sizeof negated);
  return 0 - negated;
}

/* Whether entries with equal scores are in the order of their rows. */
static bool by_row(const Entry* entries, const int64_t* rows, int64_t width)
{
  for (int64_t at = 1; at < width; ++at)
    if (entries[at].key == entries[at - 1].key && rows[entries[at].at] < rows[entries[at - 1].at]) return false;
  return true;
}

static void sort_user(const float* scores, const int64_t* rows, int64_t width, Entry** entries, Entry** spare)
{
  for (int64_t at = 0; at < width; ++at) (*entries)[at] = (Entry){key_of(scores[at]), (uint32_t)at};
  sort_entries(entries, spare, width);
  if (rows == NULL || by_row(*entries, rows, width)) return;
  for (int64_t at = 0; at < width; ++at) (*entries)[at] = (Entry){(uint32_t)rows[at], (uint32_t)at};
  sort_entries(entries, spare, width);
  for (int64_t at = 0; at < width; ++at) (*entries)[at].key = key_of(scores[(*entries)[at].at]);
  sort_entries(entries, spare, width);
}

/* Sort each user's candidates.
 *
 *   scores         [users, width]
 *   rows           [users, width], not negative, below 2**32; NULL if the order of ties does not matter
 *   order          [users, width]: indexes of the sorted candidates
 *   found_scores, found_rows   [users, width] in that order */
EXPORT int64_t sort_by_score(int64_t users, int64_t width, const float* scores, const int64_t* rows, int64_t* order,
                             float* found_scores, int64_t* found_rows)
{
  Entry* memory = malloc((size_t)(2 * width + 1) * sizeof *memory);
  if (memory == NULL) return -1;
  Entry *entries = memory, *spare = memory + width;
  for (int64_t user = 0; user < users; ++user) {
    const int64_t first = user * width;
    sort_user(scores + first, rows == NULL ? NULL : rows + first, width, &entries, &spare);
    for (int64_t at = 0; order != NULL && at < width; ++at) order[first + at] = entries[at].at;
    for (int64_t at = 0; found_scores != NULL && at < width; ++at) found_scores[first + at] = score_of(entries[at].key);
    for (int64_t at = 0; found_rows != NULL && at < width; ++at) found_rows[first + at] = rows[first + entries[at].at];
  }
  free(memory);
  return 0;
}

/* A key whose ascending order is (score descending, row ascending). */
static uint64_t key_at(const float* scores, const int64_t* rows, int64_t at)
{
  return (uint64_t)key_of(scores[at]) << 32 | (uint32_t)rows[at];
}

/* The greatest key that is among the first `count` of more; digit by digit, until a digit parts these from the others. */
static uint64_t find_cut(const uint64_t* keys, int64_t many, int64_t count)
{
  uint64_t cut = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    int64_t counts[256] = {0}, value = 0;
    for (int64_t at = 0; at < many; ++at)
      if (shift == 56 || keys[at] >> (shift + 8) == cut >> (shift + 8)) ++counts[keys[at] >> shift & 255];
    for (; counts[value] < count; ++value) count -= counts[value];
    cut |= (uint64_t)value << shift;
    if (counts[value] == count) return cut | ((UINT64_C(1) << shift) - 1);
  }
  return cut;
}

/* Estimate, from SAMPLE of the keys, a key with at least `count` keys at or below it, and not many times more. */
static uint64_t guess_cut(const float* scores, const int64_t* rows, const bool* masked, int64_t width, int64_t count)
{
  enum { SAMPLE = 128 };
  uint64_t keys[SAMPLE];
  int64_t many = 0;
  const int64_t step = width / SAMPLE;
  if (step < 2) return UINT64_MAX;
  const int64_t wanted = count * SAMPLE * 3 / 2 / width + 8;
  for (int64_t at = 0; at < SAMPLE; ++at)
    if (masked == NULL || !masked[rows[at * step]]) keys[many++] = key_at(scores, rows, at * step);
  return many > wanted ? find_cut(keys, many, wanted) : UINT64_MAX;
}

/* Collect the keys of unmasked candidates that are at most `greatest`; return how many there are. */
static int64_t gather_keys(const float* scores, const int64_t* rows, const bool* masked, int64_t width, uint64_t greatest,
                           uint64_t* keys)
{
  int64_t many = 0;
  for (int64_t at = 0; at < width; ++at) {
    keys[many] = key_at(scores, rows, at);
    many += (keys[many] <= greatest) & (masked == NULL || !masked[rows[at]]);
  }
  return many;
}

/* Find each user's best candidates among those that are not masked.
 *
 *   step           distance from one user's rows to the next user's: `width`, or 0 if all users share them
 *   cells          distance from one user's masked flags to the next user's
 *   scores         [users, width]
 *   rows           [users, width], or [width]; not negative, below 2**32
 *   masked         [users, cells], by row; NULL if nothing is masked
 *   found_scores, found_rows   [users, count], sorted; -INFINITY and `pad` if there are fewer */
EXPORT int64_t best_by_score(int64_t users, int64_t width, int64_t count, int64_t step, int64_t cells, int64_t pad,
                             const float* scores, const int64_t* rows, const bool* masked, float* found_scores,
                             int64_t* found_rows)
{
  uint64_t* keys = malloc((size_t)(width + 1) * sizeof *keys);
  Entry* memory = malloc((size_t)(2 * count + 1) * sizeof *memory);
  float* chosen = malloc((size_t)count * sizeof *chosen + 1);
  int64_t* chosen_rows = malloc((size_t)count * sizeof *chosen_rows + 1);
  const bool whole = keys != NULL && memory != NULL && chosen != NULL && chosen_rows != NULL;
  Entry *entries = memory, *spare = memory + count;
  for (int64_t user = 0; whole && user < users; ++user) {
    const float* const own = scores + user * width;
    const int64_t* const own_rows = rows + user * step;
    const bool* const own_masked = masked == NULL ? NULL : masked + user * cells;
    const uint64_t guess = guess_cut(own, own_rows, own_masked, width, count);
    int64_t below = 0, many = gather_keys(own, own_rows, own_masked, width, guess, keys);
    if (many < count && guess != UINT64_MAX) many = gather_keys(own, own_rows, own_masked, width, UINT64_MAX, keys);
    const uint64_t cut = many > count && count > 0 ? find_cut(keys, many, count) : UINT64_MAX;
    for (int64_t at = 0; at < many; ++at) below += keys[at] < cut;
    /* Keys that equal the cut are identical: take as many as there is room for. */
    int64_t equal = (many < count ? many : count) - below, next = 0;
    for (int64_t at = 0; count > 0 && at < many; ++at)
      if (keys[at] < cut || (keys[at] == cut && equal-- > 0)) {
        chosen[next] = score_of((uint32_t)(keys[at] >> 32));
        chosen_rows[next++] = (int64_t)(uint32_t)keys[at];
      }
    sort_user(chosen, chosen_rows, next, &entries, &spare);
    for (int64_t at = 0; at < count; ++at) {
      found_scores[user * count + at] = at < next ? score_of(entries[at].key) : -INFINITY;
      found_rows[user * count + at] = at < next ? chosen_rows[entries[at].at] : pad;
    }
  }
  free(keys);
  free(memory);
  free(chosen);
  free(chosen_rows);
  return whole ? 0 : -1;
}

/* ------------------------------------------------------------------------------------------------- scores of the places */

/* Make descending scores strictly falling, changed as little as possible; -inf stays. */
static void make_fall(const float* scores, int64_t width, float* falling)
{
  bool falls = true;
  for (int64_t at = 1; at < width; ++at) falls &= scores[at] < scores[at - 1] || scores[at] == -INFINITY;
  memcpy(falling, scores, (size_t)width * sizeof *scores);
  if (falls) return;
  const int64_t lowest = key_of(-3.402823466e38f);
  int64_t most = INT64_MIN; /* largest key minus place so far */
  for (int64_t at = 0; at < width; ++at) {
    const int64_t step = key_of(scores[at]) - at;
    if (step > most) most = step;
    if (scores[at] != -INFINITY) falling[at] = score_of((uint32_t)(most + at < lowest ? most + at : lowest));
  }
}

/* Reassign the scores, made strictly falling: to the picked candidates first, in their order, then to all
 * others.
 *
 *   scores   [users, width], descending
 *   order    [users, width]: the candidate that each score belonged to
 *   picks    [users, places]: indexes into that order; `width` is no pick
 *   out      [users, width]: each candidate's new score */
EXPORT int64_t put_in_place(int64_t users, int64_t width, int64_t places, const float* scores, const int64_t* order,
                            const int64_t* picks, float* out)
{
  float* falling = malloc((size_t)width * sizeof *falling + 1);
  bool* picked = malloc((size_t)width * sizeof *picked + 1);
  const bool whole = falling != NULL && picked != NULL;
  for (int64_t user = 0; whole && user < users; ++user) {
    const int64_t *own = order + user * width, *chosen = picks + user * places;
    float* given = out + user * width;
    make_fall(scores + user * width, width, falling);
    memset(picked, 0, (size_t)width * sizeof *picked);
    int64_t next = 0;
    for (int64_t place = 0; place < places; ++place) {
      if (chosen[place] == width) continue;
      picked[chosen[place]] = true;
      given[own[chosen[place]]] = falling[place];
      ++next;
    }
    for (int64_t at = 0; at < width; ++at)
      if (!picked[at]) given[own[at]] = falling[next++];
  }
  free(falling);
  free(picked);
  return whole ? 0 : -1;
}

/* Reassign the scores to the candidates in the order of score - weight * noise.
 *
 *   scores   [users, width]
 *   noise    [users, width]; weights are [users]
 *   rows     [users, width]: ties go to the lower row
 *   out      [users, width]: each candidate's new score */
EXPORT int64_t put_by_draw(int64_t users, int64_t width, const float* scores, const double* noise, const double* weights,
                           const int64_t* rows, float* out)
{
  Entry* memory = malloc((size_t)(2 * width + 1) * sizeof *memory);
  int64_t* order = malloc((size_t)width * sizeof *order + 1);
  float* sorted = malloc((size_t)width * sizeof *sorted + 1);
  bool whole = memory != NULL && order != NULL && sorted != NULL;
  Entry *entries = memory, *spare = memory + width;
  for (int64_t user = 0; whole && user < users; ++user) {
    const int64_t first = user * width;
    for (int64_t at = 0; at < width; ++at) sorted[at] = (float)(scores[first + at] - noise[first + at] * weights[user]);
    sort_user(sorted, rows + first, width, &entries, &spare);
    for (int64_t at = 0; at < width; ++at) order[at] = entries[at].at;
    sort_user(scores + first, NULL, width, &entries, &spare);
    for (int64_t at = 0; at < width; ++at) sorted[at] = score_of(entries[at].key);
    whole = put_in_place(1, width, 0, sorted, order, NULL, out + first) == 0;
  }
  free(memory);
  free(order);
  free(sorted);
  return whole ? 0 : -1;
}

/* Place the pinned items one after another, by their numbers, and reassign the scores in the new order.
 *
 *   count    the largest number of a pinned item
 *   before   how many other items come before the pinned ones
 *   scores, rows   [users, width]
 *   number   by row: 1 to `count` for pinned items, more for all others
 *   out      [users, width]: each candidate's new score
 *   pinned   [users, width]: 1 for pinned items with a score, 0 for all others */
EXPORT int64_t put_pinned(int64_t users, int64_t width, int64_t count, int64_t before, const float* scores,
                          const int64_t* rows, const int32_t* number, float* out, int32_t* pinned)
{
  Entry* memory = malloc((size_t)(3 * width + 1) * sizeof *memory);
  int64_t* order = malloc((size_t)width * sizeof *order + 1);
  float* sorted = malloc((size_t)width * sizeof *sorted + 1);
  bool whole = memory != NULL && order != NULL && sorted != NULL;
  Entry *entries = memory, *spare = memory + width, *chosen = memory + 2 * width;
  for (int64_t user = 0; whole && user < users; ++user) {
    const int64_t first = user * width;
    int32_t* own = pinned + first;
    sort_user(scores + first, rows + first, width, &entries, &spare);
    int64_t many = 0, next = 0, at = 0;
    for (int64_t place = 0; place < width; ++place) {
      const uint32_t item = entries[place].at;
      const int32_t part = number[rows[first + item]];
      sorted[place] = score_of(entries[place].key);
      own[item] = part <= count && sorted[place] != -INFINITY;
      if (own[item]) chosen[many++] = (Entry){(uint32_t)part, item};
    }
    if (count > 1) sort_entries(&chosen, &spare, many);
    for (; next < before && at < width && sorted[at] != -INFINITY; ++at)
      if (!own[entries[at].at]) order[next++] = entries[at].at;
    for (int64_t place = 0; place < many; ++place) order[next++] = chosen[place].at;
    for (; at < width; ++at)
      if (!own[entries[at].at]) order[next++] = entries[at].at;
    whole = put_in_place(1, width, 0, sorted, order, NULL, out + first) == 0;
  }
  free(memory);
  free(order);
  free(sorted);
  return whole ? 0 : -1;
}
