/* Items placed one after another by their values: the loops of calibration, caps and fair shares.
 *
 * What reorder/ does in NumPy, user by user. By a mix of values, a candidate's gain can only fall as others are placed:
 * the gain it had is an upper bound, and only the best by that bound is looked at again (Minoux 1978, "Accelerated
 * greedy algorithms for maximizing submodular set functions"). What is placed is the same.
 *
 * All arrays lie in C's order; a user's candidates are in the order of his line, the best first. `picks` gets
 * [users, places]: places in the line, `width` where nothing is left. Each function returns 0, or -1 where there is no
 * memory. float is float32.
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

/* Candidates by gain, of equal ones the first in the line. */
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

/* The logarithms of what an item makes of the shares, less those of the shares as they are. */
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

/* Fill a user's places. Gains can only fall as others are placed: `gains` [width], those of the first place, are upper
 * bounds, and only the best by that bound is looked at again. */
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

/* Place by what each item makes of the answer's mix of values.
 *
 *   codes       [users, width, values]: an item's values, `many` where there is none
 *   relevance   [users, width], weighted; -inf where there is no score
 *   start       [users, many]: what each place adds to the share of a value
 *   weights     [users, many]: how much the logarithm of its share counts
 *   adds        [values + 1]: what an item of so many values adds to the share of each */
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
    /* Values that nobody wants weigh nothing; 1 keeps their logarithms finite. */
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

/* Let at most `most` [users] items of each value through.
 *
 *   codes     [users, width, values]: as above
 *   real      [users, width] bool: which have a score
 *   dropped   [users, width] bool: which are not placed since a value of theirs is full */
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
      /* Nothing comes after the last place. */
      for (int64_t value = 0; placed < places && value < values; ++value)
        if (own[value] < many) ++counts[own[value]];
    }
    for (; placed < places; ++placed) picks[user * places + placed] = width;
  }
  free(counts);
  return 0;
}

/* Show groups of items in their shares.
 *
 *   group         [users, width]: an item's group, `groups` where it has no score
 *   least, most   [places, groups]: how many of a group the first 1, 2, … places should show */
EXPORT int64_t place_in_shares(int64_t users, int64_t width, int64_t places, int64_t groups, const int64_t* group,
                               const int64_t* least, const int64_t* most, int64_t* picks)
{
  int64_t* next = malloc((size_t)(2 * groups) * sizeof *next); /* the best that is left of each group */
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
