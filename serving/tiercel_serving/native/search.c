/* Inner products of queries with item vectors, and the best items by them.
 *
 * Results equal those of NumPy's einsum in sources/scan.py, bit for bit, if NumPy uses four lanes and rounds
 * each product, as on every x86; search.py checks that before it uses these functions. All arrays are
 * C-contiguous; float is float32.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "processors.h"

#define EXPORT __attribute__((visibility("default")))

typedef float Lanes __attribute__((vector_size(16)));
enum { LANES = 4, BLOCK = 4 * LANES, ROWS = 4 /* vectors at a time: each sum waits for its last product */ };
enum { GROUP = 16 /* vectors of a block */, SCORES = 1 << 20 /* scores held at once, 4 MB */ };

/* In order.c. */
int64_t best_by_score(int64_t users, int64_t width, int64_t count, int64_t step, int64_t cells, int64_t pad,
                      const float* scores, const int64_t* rows, const bool* masked, float* found_scores,
                      int64_t* found_rows);

/* Add the products of the next four numbers, or of the `left` last ones. */
static inline void add(Lanes* sums, const float* vector, const float* query, int64_t left)
{
  Lanes own = {0}, part = {0};
  const size_t bytes = (size_t)(left < LANES ? left : LANES) * sizeof(float);
  memcpy(&own, vector, bytes);
  memcpy(&part, query, bytes);
  *sums += own * part;
}

static inline float inner_product_end(Lanes sums, const float* vector, const float* query, int64_t begin, int64_t size)
{
  for (int64_t at = begin; at < size; at += LANES) add(&sums, vector + at, query + at, size - at);
  const float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  /* NaN from a broken model sorts last. */
  return sum == sum ? sum : -INFINITY;
}

/* Score vectors for each user.
 *
 *   many         number of vectors
 *   width        number of vectors to score for each user
 *   vectors      [many, size]
 *   queries      [users, size]
 *   positions    [users, width]: which vectors; one out of range scores -INFINITY. NULL scores all, in order
 *   scores       [users, width] */
EXPORT int64_t inner_products(int64_t users, int64_t many, int64_t width, int64_t size, const float* vectors,
                              const float* queries, const int64_t* positions, float* scores)
{
  const int64_t whole = size - size % BLOCK;
  for (int64_t user = 0; user < users; ++user) {
    const float* const query = queries + user * size;
    for (int64_t first = 0; first < width; first += ROWS) {
      const int64_t some = width - first < ROWS ? width - first : ROWS;
      const float* rows[ROWS];
      bool none[ROWS];
      for (int64_t one = 0; one < ROWS; ++one) {
        const int64_t at = first + (one < some ? one : 0), position = positions ? positions[user * width + at] : at;
        none[one] = (uint64_t)position >= (uint64_t)many;
        rows[one] = vectors + (none[one] ? 0 : position) * size;
      }
      Lanes sums[ROWS] = {{0}}, part, own;
      for (int64_t block = 0; block < whole; block += BLOCK)
        for (int64_t at = block + BLOCK - LANES; at >= block; at -= LANES) {
          memcpy(&part, query + at, sizeof part);
          for (int64_t one = 0; one < ROWS; ++one) {
            memcpy(&own, rows[one] + at, sizeof own);
            sums[one] += own * part;
          }
        }
      for (int64_t one = 0; one < some; ++one)
        scores[user * width + first + one] = none[one] ? -INFINITY : inner_product_end(sums[one], rows[one], query, whole, size);
    }
  }
  return 0;
}

/* The first of the four elements that NumPy adds in step `step`: backwards within blocks of 16, then forwards. */
static int64_t numbers_of_step(int64_t step, int64_t size)
{
  const int64_t at = step * LANES, block = at - at % BLOCK;
  return block + BLOCK <= size ? block + BLOCK - LANES - at % BLOCK : at;
}

/* Copy a vector's elements in the order in which they are added, with a stride of `apart` floats; the last step is
 * padded with zeros. */
static void put_in_order(const float* vector, int64_t size, int64_t apart, float* out)
{
  for (int64_t step = 0; step * LANES < size; ++step)
    for (int64_t lane = 0; lane < LANES; ++lane) {
      const int64_t at = numbers_of_step(step, size) + lane;
      out[(step * LANES + lane) * apart] = at < size ? vector[at] : 0;
    }
}

/* Copy vectors into the layout of best_of_all: blocks of GROUP vectors, each block stored element by element.
 *
 *   vectors   [many, size]
 *   blocks    [many / GROUP, size / LANES, LANES, GROUP], both quotients rounded up; zeroed by the caller */
EXPORT int64_t put_in_blocks(int64_t many, int64_t size, const float* vectors, float* blocks)
{
  const int64_t padded = (size + LANES - 1) / LANES * LANES;
  for (int64_t at = 0; at < many; ++at)
    put_in_order(vectors + at * size, size, GROUP, blocks + at / GROUP * GROUP * padded + at % GROUP);
  return 0;
}

/* Define a function that computes the inner products of a block's GROUP vectors with a query of `padded` elements, both
 * in the order of the additions. `Vector` must be a width that the processor supports: the compiler's code for wider
 * ones is several times slower. */
#define SCORE_BLOCK(name, Vector, Flags)                                                          \
  ALWAYS_INLINE void name(const float* block, const float* query, int64_t padded, float* scores) \
  {                                                                                               \
    enum { WIDTH = sizeof(Vector) / sizeof(float) };                                              \
    const Vector nothing = (Vector){0} - INFINITY;                                                \
    for (int64_t part = 0; part < GROUP; part += WIDTH) {                                         \
      Vector sums[LANES] = {{0}}, own;                                                            \
      for (int64_t at = 0; at < padded; at += LANES)                                              \
        for (int64_t lane = 0; lane < LANES; ++lane) {                                            \
          memcpy(&own, block + (at + lane) * GROUP + part, sizeof own);                           \
          sums[lane] += own * query[at + lane];                                                   \
        }                                                                                         \
      const Vector sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);                               \
      const Flags real = sum == sum; /* a NaN scores -INFINITY */                              \
      own = (Vector)(((Flags)sum & real) | ((Flags)nothing & ~real));                             \
      memcpy(scores + part, &own, sizeof own);                                                    \
    }                                                                                             \
  }

typedef int32_t FourFlags __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));
typedef int32_t EightFlags __attribute__((vector_size(32)));
typedef float Sixteen __attribute__((vector_size(64)));
typedef int32_t SixteenFlags __attribute__((vector_size(64)));
SCORE_BLOCK(score_by_four, Lanes, FourFlags)
SCORE_BLOCK(score_by_eight, Eight, EightFlags)
SCORE_BLOCK(score_by_sixteen, Sixteen, SixteenFlags)

/* Score all vectors for all users, [users, many]. A block stays in the cache until all users have read it. */
FOR_EACH_PROCESSOR static void score_blocks(int64_t users, int64_t many, int64_t padded, const float* blocks,
                                            const float* queries, float* scores)
{
  float last[GROUP];
  for (int64_t at = 0; at < many; at += GROUP)
    for (int64_t user = 0; user < users; ++user) {
      float* const own = scores + user * many + at;
      const bool whole = at + GROUP <= many;
      const float *const block = blocks + at * padded, *const query = queries + user * padded;
      float* const found = whole ? own : last;
      if (SIXTEEN_LANES)
        score_by_sixteen(block, query, padded, found);
      else if (EIGHT_LANES)
        score_by_eight(block, query, padded, found);
      else
        score_by_four(block, query, padded, found);
      if (!whole) memcpy(own, last, (size_t)(many - at) * sizeof *own);
    }
}

/* Find each user's best among all vectors: what inner_products and best_by_score do, one after the other.
 *
 *   blocks       the vectors, in the layout of put_in_blocks
 *   rows         [many]: the vectors' catalogue rows
 *   masked       [users, cells], by row
 *   found_scores, found_rows   [users, count] */
EXPORT int64_t best_of_all(int64_t users, int64_t many, int64_t size, int64_t count, int64_t cells, int64_t pad,
                           const float* blocks, const float* queries, const int64_t* rows, const bool* masked,
                           float* found_scores, int64_t* found_rows)
{
  const int64_t padded = (size + LANES - 1) / LANES * LANES;
  int64_t together = SCORES / (many + 1) + 1, failed = 0;
  if (together > users) together = users;
  float* const scores = malloc((size_t)(together * (many + padded)) * sizeof *scores + 1);
  if (scores == NULL) return -1;
  float* const in_order = scores + together * many;
  for (int64_t first = 0; first < users && failed == 0; first += together) {
    const int64_t some = users - first < together ? users - first : together, found = first * count;
    for (int64_t user = 0; user < some; ++user)
      put_in_order(queries + (first + user) * size, size, 1, in_order + user * padded);
    score_blocks(some, many, padded, blocks, in_order, scores);
    failed = best_by_score(some, many, count, 0, cells, pad, scores, rows, masked + first * cells, found_scores + found,
                           found_rows + found);
  }
  free(scores);
  return failed;
}
