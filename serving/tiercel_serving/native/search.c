/* Inner products of queries with item vectors, and the best of them.
 *
 * What sources/scan.py does by NumPy's einsum, to the bit where NumPy's vectors have four lanes and round each product, as
 * on every x86: search.py looks before it uses them. All arrays lie in C's order; float is float32.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef float Lanes __attribute__((vector_size(16)));
enum { LANES = 4, BLOCK = 4 * LANES, ROWS = 4 /* vectors at a time: each sum waits for its last product */ };

/* In order.c. */
int64_t best_by_score(int64_t users, int64_t width, int64_t count, int64_t step, int64_t cells, int64_t pad,
                      const float* scores, const int64_t* rows, const bool* masked, float* found_scores,
                      int64_t* found_rows);

/* Add the products of four numbers, of which there may be fewer at the end. */
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
  /* The NaN of a broken model sorts as nothing. */
  return sum == sum ? sum : -INFINITY;
}

/* Score vectors for each user.
 *
 *   many         how many vectors there are
 *   width        how many are scored of them for each user
 *   vectors      [many, size]
 *   queries      [users, size]
 *   positions    [users, width]: which; beyond the last stands for none, and scores -INFINITY. NULL is all, in order
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

/* Find each user's best among all vectors: what inner_products and best_by_score do, one after the other.
 *
 *   rows         [many]: the vectors' catalogue rows
 *   masked       [users, cells], by row
 *   found_scores, found_rows   [users, count] */
EXPORT int64_t best_of_all(int64_t users, int64_t many, int64_t size, int64_t count, int64_t cells, int64_t pad,
                           const float* vectors, const float* queries, const int64_t* rows, const bool* masked,
                           float* found_scores, int64_t* found_rows)
{
  float* const scores = malloc((size_t)(users * many) * sizeof *scores + 1);
  if (scores == NULL) return -1;
  inner_products(users, many, many, size, vectors, queries, NULL, scores);
  const int64_t failed =
      best_by_score(users, many, count, 0, cells, pad, scores, rows, masked, found_scores, found_rows);
  free(scores);
  return failed;
}
