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

#define EXPORT __attribute__((visibility("default")))

typedef float Lanes __attribute__((vector_size(16)));
enum { LANES = 4, BLOCK = 4 * LANES, ROWS = 4 /* vectors at a time, to hide the latency of each sum */ };

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

/* Find each user's best items among all vectors: inner_products, then best_by_score.
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
