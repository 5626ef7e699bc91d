/* Greedy placing of items by their vectors: the loops of MMR, DPP and spread.
 *
 * The picks are those of reorder/ in NumPy. Users are handled one by one, so that one user's vectors stay in
 * the cache. Candidates are handled in blocks, and blocks that can't contain the next pick are skipped: if
 * gains can only fall as others are placed, an earlier gain is an upper bound, and only the block with the
 * best bound is recomputed (Minoux 1978, "Accelerated greedy algorithms for maximizing submodular set
 * functions").
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

#include "processors.h"

#define EXPORT __attribute__((visibility("default")))

enum { MMR, DPP, SPREAD };

typedef float Lanes __attribute__((vector_size(32)));
typedef int32_t Places __attribute__((vector_size(32)));
enum { LANES = 8, BLOCK = 32 /* candidates that are handled together */ };

#if defined(__clang__)
#define SHUFFLE(one, other, ...) __builtin_shufflevector(one, other, __VA_ARGS__)
#else
#define SHUFFLE(one, other, ...) __builtin_shuffle(one, other, (Places){__VA_ARGS__})
#endif

/* out[i] = the inner product of rows[i] and a vector, eight rows at a time; `size` is a multiple of LANES. */
ALWAYS_INLINE void multiply(const float* const* rows, const float* vector, int64_t size, float* out)
{
  Lanes sums[LANES], part, own;
  memcpy(&part, vector, sizeof part);
  for (int64_t one = 0; one < LANES; ++one) {
    memcpy(&own, rows[one], sizeof own);
    sums[one] = own * part;
  }
  for (int64_t at = LANES; at < size; at += LANES) {
    memcpy(&part, vector + at, sizeof part);
    for (int64_t one = 0; one < LANES; ++one) {
      memcpy(&own, rows[one] + at, sizeof own);
      sums[one] += own * part;
    }
  }
  /* Reduce eight sums of eight lanes each: add neighbouring lanes, three times. */
  for (int64_t one = 0; one < LANES; one += 2)
    sums[one / 2] = SHUFFLE(sums[one], sums[one + 1], 0, 2, 8, 10, 4, 6, 12, 14) +
                    SHUFFLE(sums[one], sums[one + 1], 1, 3, 9, 11, 5, 7, 13, 15);
  for (int64_t one = 0; one < LANES / 2; one += 2)
    sums[one / 2] = SHUFFLE(sums[one], sums[one + 1], 0, 2, 8, 10, 4, 6, 12, 14) +
                    SHUFFLE(sums[one], sums[one + 1], 1, 3, 9, 11, 5, 7, 13, 15);
  const Lanes found = SHUFFLE(sums[0], sums[1], 0, 1, 2, 3, 8, 9, 10, 11) +
                      SHUFFLE(sums[0], sums[1], 4, 5, 6, 7, 12, 13, 14, 15);
  memcpy(out, &found, sizeof found);
}

/* A natural logarithm of a number above 0 and not beyond the normal ones, to the last bit or two: it has no branch,
 * so that compilers do many at once. ln m = 2 artanh((m - 1) / (m + 1)), m between the roots of 1/2 and of 2. */
ALWAYS_INLINE float log_of(float number)
{
  int32_t bits;
  memcpy(&bits, &number, sizeof bits);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23; /* 0x3f3504f3 is the square root of 1/2 */
  bits -= exponent * (1 << 23);
  float m;
  memcpy(&m, &bits, sizeof m);
  const float t = (m - 1) / (m + 1), square = t * t;
  const float series = 1 + square * (1.f / 3 + square * (1.f / 5 + square * (1.f / 7 + square * (1.f / 9))));
  return (float)exponent * 0.693147181f + 2 * t * series;
}

/* The candidates of one user, in blocks of the line; the last block is padded with candidates without a
 * score. */
typedef struct {
  int64_t kind, width, dimension, blocks, window;
  float strength, least, nothing;
  int64_t count;       /* number of directions, or placed vectors, so far */
  const float** rows;  /* [blocks, BLOCK] the candidates' unscaled vectors; then [window] the basis */
  int64_t* seen;       /* [blocks] how many of the directions a block's gains take into account */
  float* bound;        /* [blocks] upper bound on the gains of a block */
  float* scale;        /* [blocks, BLOCK] */
  float* gains;        /* [blocks, BLOCK] */
  float* relevance;    /* [blocks, BLOCK] -inf for placed candidates */
  float* state;        /* [blocks, BLOCK] MMR: the largest inner product; else the squared residual length */
  float* near;         /* [blocks, BLOCK, dimension] copies of the vectors of blocks that were used */
  float* basis;        /* [window, dimension] the latest directions */
  float* inside;       /* [window] a vector's inner products with them */
  float* shares;       /* [window, blocks, BLOCK] SPREAD: each direction's share of the squared length */
} ByVectors;

/* Prefetch the vectors of a block. */
static void expect(const ByVectors* self, int64_t block)
{
  for (int64_t at = block * BLOCK; block < self->blocks && at < (block + 1) * BLOCK; ++at)
    for (int64_t number = 0; number < self->dimension && number < 128; number += 16)
      __builtin_prefetch(self->rows[at] + number);
}

/* The largest of a block's numbers. */
ALWAYS_INLINE float largest(const float* numbers)
{
  float most[LANES];
  memcpy(most, numbers, sizeof most);
  for (int64_t at = LANES; at < BLOCK; at += LANES)
    for (int64_t one = 0; one < LANES; ++one)
      most[one] = numbers[at + one] > most[one] ? numbers[at + one] : most[one];
  float found = most[0];
  for (int64_t one = 1; one < LANES; ++one) found = most[one] > found ? most[one] : found;
  return found;
}

/* Copy the vectors of a block, which are scattered in memory, next to each other, since they are read
 * repeatedly. */
static void bring_near(ByVectors* self, int64_t block)
{
  expect(self, block + 1);
  for (int64_t at = block * BLOCK; at < (block + 1) * BLOCK; ++at) {
    float* near = self->near + at * self->dimension;
    memcpy(near, self->rows[at], (size_t)self->dimension * sizeof *near);
    self->rows[at] = near;
  }
}

/* Update the gains of a block for all items placed since its last update, in the order of the places, so
 * that equal candidates get equal gains. */
FOR_EACH_PROCESSOR static void meet(ByVectors* self, int64_t block)
{
  const int64_t first = block * BLOCK, all = self->blocks * BLOCK, dimension = self->dimension, kind = self->kind;
  float *state = self->state + first, *gains = self->gains + first, products[BLOCK];
  const float *relevance = self->relevance + first, *scale = self->scale + first;
  const float strength = self->strength, least = self->least;
  if (self->seen[block] == 0) bring_near(self, block);
  for (int64_t place = self->seen[block]; place < self->count; ++place) {
    const int64_t slot = place % self->window;
    for (int64_t at = 0; at < BLOCK; at += LANES)
      multiply(self->rows + first + at, self->basis + slot * dimension, dimension, products + at);
    for (int64_t at = 0; at < BLOCK; ++at) products[at] *= scale[at];
    if (kind == MMR) {
      /* The first product replaces the initial state, even if it is smaller. */
      for (int64_t at = 0; at < BLOCK; ++at)
        state[at] = place == 0 || products[at] > state[at] ? products[at] : state[at];
      continue;
    }
    for (int64_t at = 0; at < BLOCK; ++at) products[at] *= products[at];
    if (kind == SPREAD) {
      float* share = self->shares + slot * all + first;
      for (int64_t at = 0; at < BLOCK; ++at) state[at] += share[at];
      memcpy(share, products, sizeof products);
    }
    for (int64_t at = 0; at < BLOCK; ++at) state[at] -= products[at];
  }
  self->seen[block] = self->count;
  if (kind == MMR)
    for (int64_t at = 0; at < BLOCK; ++at) gains[at] = relevance[at] - state[at];
  else if (kind == DPP)
    for (int64_t at = 0; at < BLOCK; ++at)
      gains[at] = log_of(state[at] > least ? state[at] : least) * strength + relevance[at];
  else
    for (int64_t at = 0; at < BLOCK; ++at)
      gains[at] = sqrtf(state[at] > 0 ? state[at] : 0) * strength + relevance[at];
  self->bound[block] = largest(gains);
}

/* Append a placed candidate to the basis: for MMR its vector, else its direction orthogonal to those that
 * are kept, of length 1, or zeros if it is negligible. */
FOR_EACH_PROCESSOR static void add_direction(ByVectors* self, int64_t at)
{
  const int64_t dimension = self->dimension, slot = self->count % self->window;
  const int64_t kept = self->count < self->window ? self->count : self->window;
  float *direction = self->basis + slot * dimension, *inside = self->inside;
  const float *row = self->rows[at], scale = self->scale[at];
  ++self->count;
  for (int64_t number = 0; number < dimension; ++number) direction[number] = row[number] * scale;
  if (self->kind == MMR) return;
  for (int64_t one = 0; one < kept; one += LANES)
    multiply(self->rows + self->blocks * BLOCK + one, direction, dimension, inside + one);
  inside[slot] = 0; /* the slot of the oldest direction, which is replaced */
  Lanes squares = {0};
  for (int64_t number = 0; number < dimension; number += LANES) {
    Lanes left, used;
    memcpy(&left, direction + number, sizeof left);
    for (int64_t one = 0; one < kept; ++one) {
      memcpy(&used, self->basis + one * dimension + number, sizeof used);
      left -= used * inside[one];
    }
    squares += left * left;
    memcpy(direction + number, &left, sizeof left);
  }
  float square = 0;
  for (int64_t one = 0; one < LANES; ++one) square += squares[one];
  const float inverse = square > self->nothing ? (float)(1 / sqrt((double)square)) : 0;
  for (int64_t number = 0; number < dimension; ++number) direction[number] *= inverse;
}

/* Initialise the state for a user's candidates, with none placed. */
static void begin(ByVectors* self, const float* matrix, const int64_t* row, const float* scale, const float* relevance)
{
  const int64_t all = self->blocks * BLOCK;
  self->count = 0;
  if (self->kind == SPREAD) memset(self->shares, 0, (size_t)(self->window * all) * sizeof(float));
  for (int64_t at = 0; at < all; ++at) {
    const bool real = at < self->width;
    self->rows[at] = matrix + (real ? row[at] * self->dimension : 0);
    self->scale[at] = real ? scale[at] : 0;
    self->relevance[at] = real ? relevance[at] : -INFINITY;
    self->gains[at] = self->relevance[at] + (self->kind == SPREAD ? self->strength : 0);
    self->state[at] = 1;
  }
  expect(self, 0);
  for (int64_t block = 0; block < self->blocks; ++block) {
    self->seen[block] = 0;
    self->bound[block] = largest(self->gains + block * BLOCK);
  }
}

/* Return the block with the largest gain; ties go to the first. A block's bound is its gain at its last
 * update; only the block with the best bound is updated. */
static int64_t best_block(ByVectors* self)
{
  for (;;) {
    int64_t best = 0;
    for (int64_t block = 1; block < self->blocks; ++block)
      if (self->bound[block] > self->bound[best]) best = block;
    if (self->seen[best] == self->count) return best;
    meet(self, best);
  }
}

/* Fill a user's places. */
static void place_user(ByVectors* self, int64_t places, int64_t* picks)
{
  for (int64_t place = 0; place < places; ++place) {
    const int64_t block = best_block(self);
    const float gain = self->bound[block];
    picks[place] = self->width;
    if (!(gain > -INFINITY)) continue;
    int64_t at = block * BLOCK;
    while (self->gains[at] != gain) ++at;
    picks[place] = at;
    if (place + 1 == places) return;
    self->gains[at] = self->relevance[at] = -INFINITY;
    self->bound[block] = largest(self->gains + block * BLOCK);
    add_direction(self, at);
    /* Reset bounds: gains can rise when a direction leaves the window, or if the first cosine is negative. */
    if (self->kind == SPREAD || (self->kind == MMR && place == 0))
      for (int64_t other = 0; other < self->blocks; ++other) self->bound[other] = INFINITY;
  }
}

/* Place by MMR, DPP, or the spread within a window.
 *
 *   kind, window   which of the three; how many directions SPREAD keeps (DPP and MMR keep `places`)
 *   dimension      a multiple of LANES
 *   matrix         [any, dimension]; row, scale [users, width]: a candidate's vector is matrix[row] * scale
 *   relevance      [users, width], weighted; -inf without a score
 *   strength       [users]; for MMR, the vectors' scale already contains it
 *   limits         [2]: lower bound on squared residual lengths (DPP), and below which they are negligible */
EXPORT int64_t place_by_vectors(int64_t kind, int64_t users, int64_t width, int64_t places, int64_t dimension,
                                int64_t window, const float* matrix, const int64_t* row, const float* scale,
                                const float* relevance, const float* strength, const float* limits, int64_t* picks)
{
  const int64_t kept = kind == SPREAD ? window : places, blocks = (width + BLOCK - 1) / BLOCK, all = blocks * BLOCK;
  const int64_t rounded = (kept + LANES - 1) / LANES * LANES; /* LANES rows are multiplied at a time */
  float* numbers = calloc((size_t)(blocks + 4 * all + rounded * (dimension + 1) + (kind == SPREAD ? window * all : 0)),
                          sizeof(float));
  const float** rows = malloc((size_t)(all + rounded) * sizeof *rows);
  int64_t* seen = malloc((size_t)blocks * sizeof *seen);
  float* near = malloc((size_t)(all * dimension) * sizeof *near);
  const bool whole = numbers != NULL && rows != NULL && seen != NULL && near != NULL;
  ByVectors self = {.kind = kind, .width = width, .dimension = dimension, .blocks = blocks, .window = kept,
                    .least = limits[0], .nothing = limits[1], .rows = rows, .seen = seen, .bound = numbers,
                    .near = near};
  if (whole) {
    self.scale = self.bound + blocks;
    self.gains = self.scale + all;
    self.relevance = self.gains + all;
    self.state = self.relevance + all;
    self.basis = self.state + all;
    self.inside = self.basis + rounded * dimension;
    self.shares = self.inside + rounded;
    for (int64_t one = 0; one < rounded; ++one) rows[all + one] = self.basis + one * dimension;
  }
  for (int64_t user = 0; whole && user < users; ++user) {
    self.strength = strength[user];
    begin(&self, matrix, row + user * width, scale + user * width, relevance + user * width);
    place_user(&self, places, picks + user * places);
  }
  free(numbers);
  free(rows);
  free(seen);
  free(near);
  return whole ? 0 : -1;
}
