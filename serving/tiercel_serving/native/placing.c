/* Items placed one after another: the loops of MMR, DPP, spread, calibration, caps and fair shares.
 *
 * What reorder/ does in NumPy, user by user, so that one user's vectors stay in the cache, and without work on
 * candidates that cannot be next. Where a candidate's gain can only fall as others are placed, the gain it had is an
 * upper bound, and only the best by that bound is looked at again: Minoux 1978, "Accelerated greedy algorithms for
 * maximizing submodular set functions". What is placed is the same.
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

/* ------------------------------------------------------------------------------------------- the best by an upper bound */

enum { EXPECTED = 8 }; /* how far ahead memory is asked for */

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

/* What differs between steps: a candidate's gain as things stand, and what becomes of things when one is placed. */
typedef struct Greedy Greedy;
struct Greedy {
  float (*gain)(Greedy* self, int64_t at);
  void (*place)(Greedy* self, int64_t at);
  void (*expect)(const Greedy* self, int64_t at); /* its gain is asked for soon; needed where gains may rise */
  bool may_rise; /* gains may rise with the first item placed, and only fall from there on */
};

/* Fill places; `gains` [width] are those of the first place, -inf where a candidate cannot have any. */
static void place_best(Greedy* step, const float* gains, int64_t width, int64_t places, Entry* heap, int32_t* known,
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
      heap[0].gain = step->gain(step, heap[0].at);
      sift_down(heap, size, 0);
    }
    const int64_t best = heap[0].at;
    picks[place] = best;
    heap[0] = heap[--size];
    if (size > 0) sift_down(heap, size, 0);
    if (place + 1 == places) break;
    step->place(step, best);
    if (step->may_rise && place == 0) {
      for (int64_t at = 0; at < size; ++at) {
        if (at + EXPECTED < size) step->expect(step, heap[at + EXPECTED].at);
        known[heap[at].at] = 1;
        heap[at].gain = step->gain(step, heap[at].at);
      }
      make_heap(heap, size);
    }
  }
}

/* ------------------------------------------------------------------------------------------------------- by vectors */

enum { MMR, DPP, SPREAD };

/* Once more for processors of the last ten years, which the loader chooses by itself: as BLAS does for NumPy. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 11
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

typedef float Lanes __attribute__((vector_size(32)));
enum { LANES = 8, TOGETHER = 4 };

/* sums += one * other, of lanes that may lie anywhere. */
static inline __attribute__((always_inline)) void add_products(Lanes* sums, const float* one, const float* other)
{
  Lanes left, right;
  memcpy(&left, one, sizeof left);
  memcpy(&right, other, sizeof right);
  *sums += left * right;
}

static inline __attribute__((always_inline)) float sum_of(const Lanes* lanes)
{
  const Lanes all = *lanes;
  return ((all[0] + all[4]) + (all[1] + all[5])) + ((all[2] + all[6]) + (all[3] + all[7]));
}

/* out[i] = the inner product of a vector [size] and row i of [count, size]. */
FOR_EACH_PROCESSOR static void inner_products(const float* rows, const float* vector, int64_t count, int64_t size,
                                              float* out)
{
  const int64_t whole = size - size % LANES;
  int64_t row = 0;
  /* Some rows at a time, so that none waits for another. */
  for (; row + TOGETHER <= count; row += TOGETHER, rows += TOGETHER * size) {
    Lanes sums[TOGETHER] = {{0}};
    for (int64_t at = 0; at < whole; at += LANES)
      for (int64_t one = 0; one < TOGETHER; ++one) add_products(&sums[one], rows + one * size + at, vector + at);
    for (int64_t one = 0; one < TOGETHER; ++one) out[row + one] = sum_of(&sums[one]);
    for (int64_t at = whole; at < size; ++at)
      for (int64_t one = 0; one < TOGETHER; ++one) out[row + one] += rows[one * size + at] * vector[at];
  }
  for (; row < count; ++row, rows += size) {
    Lanes sums = {0};
    for (int64_t at = 0; at < whole; at += LANES) add_products(&sums, rows + at, vector + at);
    out[row] = sum_of(&sums);
    for (int64_t at = whole; at < size; ++at) out[row] += rows[at] * vector[at];
  }
}

/* The sum of the squares of numbers, four at a time. */
static float sum_of_squares(const float* numbers, int64_t count)
{
  float sums[4] = {0};
  int64_t at = 0;
  for (; at + 4 <= count; at += 4)
    for (int one = 0; one < 4; ++one) sums[one] += numbers[at + one] * numbers[at + one];
  for (; at < count; ++at) sums[0] += numbers[at] * numbers[at];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

typedef struct {
  Greedy step;
  const float *matrix, *scale, *relevance; /* of this user */
  const int64_t* row;
  float strength, least, nothing;
  int64_t dimension, count; /* how many directions, or placed vectors, there are */
  int32_t* seen;            /* [width] how many of the directions a candidate's state has met */
  float* state;             /* [width] MMR: the largest inner product; else what is left of the squared length */
  float* basis;             /* [most, dimension] */
  float* products;          /* [most or width] */
} ByVectors;

static const float* row_of(const ByVectors* self, int64_t at) { return self->matrix + self->row[at] * self->dimension; }

/* Write a candidate's vector. */
static void copy_vector(const ByVectors* self, int64_t at, float* vector)
{
  const float *row = row_of(self, at), scale = self->scale[at];
  for (int64_t number = 0; number < self->dimension; ++number) vector[number] = row[number] * scale;
}

/* Ask the memory for a candidate's vector. */
static void expect(const Greedy* step, int64_t at)
{
  const ByVectors* self = (const ByVectors*)step;
  const char* row = (const char*)row_of(self, at);
  for (int64_t byte = 0; byte < self->dimension * (int64_t)sizeof(float) && byte < 512; byte += 64)
    __builtin_prefetch(row + byte);
}

/* Write a candidate's inner products with what was placed since it was looked at; return how many. */
static int64_t meet(ByVectors* self, int64_t at)
{
  const int64_t more = self->count - self->seen[at];
  const float* since = self->basis + self->seen[at] * self->dimension;
  inner_products(since, row_of(self, at), more, self->dimension, self->products);
  for (int64_t one = 0; one < more; ++one) self->products[one] *= self->scale[at];
  self->seen[at] = (int32_t)self->count;
  return more;
}

static float mmr_gain(Greedy* step, int64_t at)
{
  ByVectors* self = (ByVectors*)step;
  const int64_t more = meet(self, at);
  if (more == self->count) self->state[at] = -INFINITY;
  for (int64_t one = 0; one < more; ++one)
    if (self->products[one] > self->state[at]) self->state[at] = self->products[one];
  return self->relevance[at] - self->state[at];
}

static void mmr_place(Greedy* step, int64_t at)
{
  ByVectors* self = (ByVectors*)step;
  copy_vector(self, at, self->basis + self->count++ * self->dimension);
}

static float dpp_gain(Greedy* step, int64_t at)
{
  ByVectors* self = (ByVectors*)step;
  const int64_t more = meet(self, at);
  self->state[at] -= sum_of_squares(self->products, more);
  const float left = self->state[at] > self->least ? self->state[at] : self->least;
  return logf(left) * self->strength + self->relevance[at];
}

/* Write into row `place` of the basis what a candidate adds to the first `count` rows, of length 1, or zeros. */
static void add_direction(ByVectors* self, int64_t at, int64_t count, int64_t place)
{
  const int64_t dimension = self->dimension;
  float *direction = self->basis + place * dimension, square;
  copy_vector(self, at, direction);
  inner_products(self->basis, direction, count, dimension, self->products);
  for (int64_t one = 0; one < count; ++one) {
    if (one == place) continue; /* the oldest, which has made room */
    const float *used = self->basis + one * dimension, share = self->products[one];
    for (int64_t number = 0; number < dimension; ++number) direction[number] -= share * used[number];
  }
  inner_products(direction, direction, 1, dimension, &square);
  const float inverse = square > self->nothing ? (float)(1 / sqrt((double)square)) : 0;
  for (int64_t number = 0; number < dimension; ++number) direction[number] *= inverse;
}

static void dpp_place(Greedy* step, int64_t at)
{
  ByVectors* self = (ByVectors*)step;
  add_direction(self, at, self->count, self->count);
  ++self->count;
}

/* What becomes of all gains when a direction replaces the oldest, whose squared shares were `share`. */
FOR_EACH_PROCESSOR static void change_gains(int64_t width, const float* products, const float* relevance, float strength,
                                            float* share, float* left, float* gains)
{
  for (int64_t at = 0; at < width; ++at) {
    left[at] += share[at];
    share[at] = products[at] * products[at];
    left[at] -= share[at];
    gains[at] = sqrtf(left[at] > 0 ? left[at] : 0) * strength + relevance[at];
  }
}

/* Gains rise again when a direction leaves the window: every candidate is looked at for every place. */
static void spread(ByVectors* self, int64_t width, int64_t places, int64_t window, float* vectors, float* shares,
                   float* relevance, float* gains, int64_t* picks)
{
  memset(shares, 0, (size_t)(window * width) * sizeof *shares);
  memcpy(relevance, self->relevance, (size_t)width * sizeof(float));
  for (int64_t at = 0; at < width; ++at) {
    if (at + EXPECTED < width) expect(&self->step, at + EXPECTED);
    copy_vector(self, at, vectors + at * self->dimension);
    gains[at] = relevance[at] + self->strength;
  }
  for (int64_t place = 0; place < places; ++place) {
    int64_t best = 0;
    for (int64_t at = 1; at < width; ++at)
      if (gains[at] > gains[best]) best = at;
    picks[place] = gains[best] > -INFINITY ? best : width;
    if (place + 1 == places || picks[place] == width) continue;
    relevance[best] = -INFINITY;
    const int64_t oldest = place % window;
    add_direction(self, best, place < window ? place : window, oldest);
    inner_products(vectors, self->basis + oldest * self->dimension, width, self->dimension, self->products);
    change_gains(width, self->products, relevance, self->strength, shares + oldest * width, self->state, gains);
  }
}

/* Place by MMR, DPP, or the spread within a window.
 *
 *   kind, window   which of the three; how many directions are kept (places for DPP)
 *   matrix         [any, dimension]; row, scale [users, width]: a candidate's vector is matrix[row] * scale
 *   relevance      [users, width], weighted; -inf where there is no score
 *   strength       [users]; MMR has it in the vectors
 *   limits         [2]: what is left of a squared length at least, and what is next to nothing */
EXPORT int64_t place_by_vectors(int64_t kind, int64_t users, int64_t width, int64_t places, int64_t dimension,
                                int64_t window, const float* matrix, const int64_t* row, const float* scale,
                                const float* relevance, const float* strength, const float* limits, int64_t* picks)
{
  const int64_t kept = kind == SPREAD ? window : places, most = width > kept ? width : kept;
  const int64_t of_spread = kind == SPREAD ? (dimension + window + 2) * width : 0;
  float* numbers = malloc((size_t)(kept * dimension + most + width + of_spread) * sizeof(float));
  Entry* heap = malloc((size_t)width * sizeof(Entry));
  int32_t* counts = malloc(2 * (size_t)width * sizeof(int32_t));
  const bool whole = numbers != NULL && heap != NULL && counts != NULL;
  ByVectors self = {.step = {kind == MMR ? mmr_gain : dpp_gain, kind == MMR ? mmr_place : dpp_place, expect, kind == MMR},
                    .matrix = matrix, .least = limits[0], .nothing = limits[1], .dimension = dimension,
                    .seen = counts, .basis = numbers};
  self.products = self.basis + kept * dimension;
  self.state = self.products + most;
  float* more = self.state + width;
  for (int64_t user = 0; whole && user < users; ++user) {
    self.row = row + user * width;
    self.scale = scale + user * width;
    self.relevance = relevance + user * width;
    self.strength = strength[user];
    self.count = 0;
    memset(counts, 0, (size_t)width * sizeof *counts);
    for (int64_t at = 0; at < width; ++at) self.state[at] = kind == MMR ? 0 : 1;
    if (kind == SPREAD)
      spread(&self, width, places, window, more + (window + 2) * width, more, more + window * width,
             more + (window + 1) * width, picks + user * places);
    else
      place_best(&self.step, self.relevance, width, places, heap, counts + width, picks + user * places);
  }
  free(numbers);
  free(heap);
  free(counts);
  return whole ? 0 : -1;
}

/* -------------------------------------------------------------------------------------------------- by a mix of values */

typedef struct {
  Greedy step;
  const int64_t* codes;
  const float *relevance, *start, *weights, *adds;
  int64_t values, many;
  float* total;
} ByMix;

/* The logarithms of what an item makes of the shares, less those of the shares as they are. */
static float mix_gain(Greedy* step, int64_t at)
{
  const ByMix* self = (const ByMix*)step;
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

static void mix_place(Greedy* step, int64_t at)
{
  const ByMix* self = (const ByMix*)step;
  const int64_t* codes = self->codes + at * self->values;
  int64_t count = 0;
  for (int64_t value = 0; value < self->values; ++value) count += codes[value] < self->many;
  for (int64_t code = 0; code < self->many; ++code) self->total[code] += self->start[code];
  for (int64_t value = 0; value < self->values; ++value)
    if (codes[value] < self->many) self->total[codes[value]] += self->adds[count];
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
  ByMix self = {.step = {mix_gain, mix_place, NULL, false}, .adds = adds, .values = values, .many = many, .total = numbers};
  for (int64_t user = 0; whole && user < users; ++user) {
    self.codes = codes + user * width * values;
    self.relevance = relevance + user * width;
    self.start = start + user * many;
    self.weights = weights + user * many;
    /* Values that nobody wants weigh nothing; 1 keeps their logarithms finite. */
    for (int64_t code = 0; code < many; ++code) numbers[code] = self.start[code] + (self.start[code] == 0);
    for (int64_t at = 0; at < width; ++at) numbers[many + at] = mix_gain(&self.step, at);
    place_best(&self.step, numbers + many, width, places, heap, known, picks + user * places);
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
