/* Greedy placing of items by their values: the loops of calibration, caps and fair shares.
 *
 * Results equal those of reorder/ in NumPy, but users are handled one by one. In calibration, a candidate's
 * gain can only fall as others are placed. So its earlier gain is an upper bound, and only the candidate
 * with the best bound is recomputed (Minoux 1978, "Accelerated greedy algorithms for maximizing submodular
 * set functions").
 *
 * All arrays are C-contiguous; a user's candidates are sorted, best first (the "line"). `picks` [users,
 * places] gets indexes into the line, `width` if no candidate is left. Each function returns 0, or -1 if it
 * runs out of memory. float is float32.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* -------------------------------------------------------------------------------------------------- by a mix of values */

typedef struct {
  float gain;
  int32_t at;
} Entry;

/* Order by gain; ties go to the first in the line. */
static bool comes_before(Entry one, Entry other)
{
  return one.gain > other.gain || (one.gain == other.gain && one.at < other.at);
}

static void sift_down(Entry* heap, int64_t size, int64_t at)
{
  const Entry moved = heap[at];
  for (int64_t child = 2 * at + 1; child < size; child = 2 * at + 1) {
    if (child + 1 < size && comes_before(heap[child + 1], heap[child])) ++child;
    if (!comes_before(heap[child], moved)) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = moved;
}

static void make_heap(Entry* heap, int64_t size)
{
  for (int64_t at = size / 2 - 1; at >= 0; --at) sift_down(heap, size, at);
}

typedef struct {
  const int64_t* codes;
  const float *relevance, *start, *weights, *adds;
  int64_t values, many;
  float* total;
} ByMix;

/* A candidate's gain: the weighted change of the logarithms of the shares that it would cause, plus its
 * relevance. */
static float mix_gain(const ByMix* self, int64_t at)
{
  const int64_t* codes = self->codes + at * self->values;
  int64_t count = 0;
  for (int64_t value = 0; value < self->values; ++value) count += codes[value] < self->many;
  float sum = 0;
  for (int64_t value = 0; value < self->values; ++value) {
    const int64_t code = codes[value];
    if (code < self->many && self->weights[code] != 0)
      sum += logf(1 / self->total[code] * self->adds[count] + 1) * self->weights[code];
  }
  return sum + self->relevance[at];
}

static void mix_place(const ByMix* self, int64_t at)
{
  const int64_t* codes = self->codes + at * self->values;
  int64_t count = 0;
  for (int64_t value = 0; value < self->values; ++value) count += codes[value] < self->many;
  for (int64_t code = 0; code < self->many; ++code) self->total[code] += self->start[code];
  for (int64_t value = 0; value < self->values; ++value)
    if (codes[value] < self->many) self->total[codes[value]] += self->adds[count];
}

/* Fill a user's places. `gains` [width] are those of the first place. Since gains only fall as others are
 * placed, they are upper bounds, and only the candidate with the best bound is recomputed. */
static void place_mixed(const ByMix* self, const float* gains, int64_t width, int64_t places, Entry* heap, int32_t* known,
                        int64_t* picks)
{
  int64_t size = 0;
  for (int64_t at = 0; at < width; ++at) {
    known[at] = 0;
    if (gains[at] > -INFINITY) heap[size++] = (Entry){gains[at], (int32_t)at};
  }
  make_heap(heap, size);
  for (int32_t place = 0; place < places; ++place) {
    if (size == 0) {
      picks[place] = width;
      continue;
    }
    while (known[heap[0].at] != place) {
      known[heap[0].at] = place;
      heap[0].gain = mix_gain(self, heap[0].at);
      sift_down(heap, size, 0);
    }
    const int64_t best = heap[0].at;
    picks[place] = best;
    heap[0] = heap[--size];
    if (size > 0) sift_down(heap, size, 0);
    if (place + 1 < places) mix_place(self, best);
  }
}

/* Place items by their effect on the answer's mix of values.
 *
 *   codes       [users, width, values]: an item's values, padded with `many`
 *   relevance   [users, width], weighted; -inf without a score
 *   start       [users, many]: what each place adds to the share of a value
 *   weights     [users, many]: weight of the logarithm of a value's share
 *   adds        [values + 1]: number of an item's values -> what it adds to the share of each */
EXPORT int64_t place_by_mix(int64_t users, int64_t width, int64_t places, int64_t values, int64_t many,
                            const int64_t* codes, const float* relevance, const float* start, const float* weights,
                            const float* adds, int64_t* picks)
{
  float* numbers = malloc((size_t)(many + width) * sizeof(float));
  Entry* heap = malloc((size_t)width * sizeof(Entry));
  int32_t* known = malloc((size_t)width * sizeof(int32_t));
  const bool whole = numbers != NULL && heap != NULL && known != NULL;
  ByMix self = {.adds = adds, .values = values, .many = many, .total = numbers};
  for (int64_t user = 0; whole && user < users; ++user) {
    self.codes = codes + user * width * values;
    self.relevance = relevance + user * width;
    self.start = start + user * many;
    self.weights = weights + user * many;
    /* Values outside the user's history have weight 0; a total of 1 keeps their logarithms finite. */
    for (int64_t code = 0; code < many; ++code) numbers[code] = self.start[code] + (self.start[code] == 0);
    for (int64_t at = 0; at < width; ++at) numbers[many + at] = mix_gain(&self, at);
    place_mixed(&self, numbers + many, width, places, heap, known, picks + user * places);
  }
  free(numbers);
  free(heap);
  free(known);
  return whole ? 0 : -1;
}

/* ------------------------------------------------------------------------------------------------------- down the line */

/* Place at most `most` [users] items of each value.
 *
 *   codes     [users, width, values]: as above
 *   real      [users, width] bool: which have a score
 *   dropped   [users, width] bool: which are not placed because one of their values is full */
EXPORT int64_t place_under_caps(int64_t users, int64_t width, int64_t places, int64_t values, int64_t many,
                                const int64_t* codes, const uint8_t* real, const int64_t* most, int64_t* picks,
                                uint8_t* dropped)
{
  int64_t* counts = malloc((size_t)(many + 1) * sizeof *counts);
  if (counts == NULL) return -1;
  for (int64_t user = 0; user < users; ++user) {
    memset(counts, 0, (size_t)(many + 1) * sizeof *counts);
    int64_t placed = 0;
    for (int64_t at = 0; at < width; ++at) {
      const int64_t cell = user * width + at, *own = codes + cell * values;
      bool full = false;
      for (int64_t value = 0; value < values; ++value)
        full = full || (own[value] < many && counts[own[value]] >= most[user]);
      const bool stays = placed < places && real[cell] && !full;
      dropped[cell] = real[cell] && full;
      if (!stays) continue;
      picks[user * places + placed++] = at;
      /* Counts after the last place are not needed. */
      for (int64_t value = 0; placed < places && value < values; ++value)
        if (own[value] < many) ++counts[own[value]];
    }
    for (; placed < places; ++placed) picks[user * places + placed] = width;
  }
  free(counts);
  return 0;
}

/* Place groups of items in their shares.
 *
 *   group         [users, width]: an item's group, `groups` without a score
 *   least, most   [places, groups]: bounds on the number of a group's items in the first 1, 2, … places */
EXPORT int64_t place_in_shares(int64_t users, int64_t width, int64_t places, int64_t groups, const int64_t* group,
                               const int64_t* least, const int64_t* most, int64_t* picks)
{
  int64_t* next = malloc((size_t)(2 * groups) * sizeof *next); /* the best remaining item of each group */
  if (next == NULL) return -1;
  int64_t* counts = next + groups;
  for (int64_t user = 0; user < users; ++user) {
    const int64_t* own = group + user * width;
    for (int64_t one = 0; one < groups; ++one) {
      counts[one] = 0;
      for (next[one] = 0; next[one] < width && own[next[one]] != one; ++next[one]) continue;
    }
    for (int64_t place = 0; place < places; ++place) {
      const int64_t *low = least + place * groups, *high = most + place * groups;
      int64_t best = -1, rank = -1;
      for (int64_t one = 0; one < groups; ++one) {
        if (next[one] == width) continue;
        const int64_t own_rank = counts[one] < low[one] ? 2 : counts[one] < high[one];
        if (own_rank > rank || (own_rank == rank && next[one] < next[best])) best = one, rank = own_rank;
      }
      picks[user * places + place] = best < 0 ? width : next[best];
      if (best < 0) continue;
      ++counts[best];
      for (++next[best]; next[best] < width && own[next[best]] != best; ++next[best]) continue;
    }
  }
  free(next);
  return 0;
}
