/* Runs a dense model as a list of loops over numbers, user by user. The export writes the list, and
 * engines/loops.py opens it.
 *
 * Every loop is of one kind, over at most four axes. Its operands have strides, so views need no copies, and
 * intermediate results of one user stay in the cache. The list guarantees that no loop leaves its arrays.
 * Only the input of a request can be wrong, so rows to gather are checked. float is float32.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "processors.h"

#define EXPORT __attribute__((visibility("default")))

/* Use fused multiply-add where the processor has it, as BLAS does. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT ON
#else
#pragma GCC optimize("fp-contract=fast")
#endif

/* The names in KINDS of engines/loops.py, in that order. */
enum {
  LOAD_BOOL, LOAD_INT32, LOAD_INT64, COPY, ADD, SUBTRACT, MULTIPLY, DIVIDE, LESSER, GREATER, LESS, MORE, EQUAL, AT_MOST,
  AT_LEAST, CHOOSE, CLIP, IS_NAN, NOT, NEGATE, ABSOLUTE, ROOT, LOGARITHM, EXPONENT, TANGENT, SIGMOID, RECTIFY, ERROR,
  SUM, HIGHEST, PRODUCT, GATHER_INT32, GATHER_INT64
};

/* An operand: its array, its first element, and its stride along each axis, in elements. */
typedef struct {
  int64_t array, first, steps[4];
} Operand;

/* `rows` is the number of rows of the table that a gather reads. */
typedef struct {
  int64_t kind, rows, sizes[4];
  Operand out, one, two, three;
} Loop;

typedef float Lanes __attribute__((vector_size(32)));
typedef float Wide __attribute__((vector_size(64)));
enum { LANES = 8, WIDE = 16 };

/* ------------------------------------------------------------------------------------------------ element by element */

/* The export places no output over an operand of the same loop, so iterations are independent. */
#define EACH_NUMBER _Pragma("GCC ivdep") for (int64_t i = 0; i < size; ++i)

/* The usual distances have loops of their own, which the compiler writes with vectors. */
#define EACH(value)                               \
  do {                                            \
    if (by == 1 && of == 1 && at == 1)            \
      EACH_NUMBER {                               \
        const float x = one[i], y = two[i];       \
        (void)y;                                  \
        out[i] = value;                           \
      }                                           \
    else if (by == 1 && of == 1 && at == 0)       \
      EACH_NUMBER {                               \
        const float x = one[i], y = two[0];       \
        (void)y;                                  \
        out[i] = value;                           \
      }                                           \
    else                                          \
      EACH_NUMBER {                               \
        const float x = one[i * of], y = two[i * at]; \
        (void)y;                                  \
        out[i * by] = value;                      \
      }                                           \
  } while (0)

#define LOAD(type)                                                            \
  do {                                                                        \
    const type* const given = (const type*)arrays[loop->one.array] + first;   \
    for (int64_t i = 0; i < size; ++i) out[i * by] = (float)given[i * of];    \
  } while (0)

/* Run one loop along the last axis. */
ALWAYS_INLINE void run_row(const Loop* loop, char* const* arrays, int64_t first, float* out, const float* one,
                           const float* two, const float* three)
{
  const int64_t size = loop->sizes[3], by = loop->out.steps[3], of = loop->one.steps[3], at = loop->two.steps[3];
  const int64_t beside = loop->three.steps[3];
  switch (loop->kind) {
    case LOAD_BOOL: LOAD(uint8_t); break;
    case LOAD_INT32: LOAD(int32_t); break;
    case LOAD_INT64: LOAD(int64_t); break;
    case COPY: EACH(x); break;
    case ADD: EACH(x + y); break;
    case SUBTRACT: EACH(x - y); break;
    case MULTIPLY: EACH(x * y); break;
    case DIVIDE: EACH(x / y); break;
    /* NaN in either operand is kept. */
    case LESSER: EACH(x < y || x != x ? x : y); break;
    case GREATER: EACH(x > y || x != x ? x : y); break;
    case LESS: EACH((float)(x < y)); break;
    case MORE: EACH((float)(x > y)); break;
    case EQUAL: EACH((float)(x == y)); break;
    case AT_MOST: EACH((float)(x <= y)); break;
    case AT_LEAST: EACH((float)(x >= y)); break;
    case CHOOSE:
      for (int64_t i = 0; i < size; ++i) out[i * by] = one[i * of] != 0 ? two[i * at] : three[i * beside];
      break;
    case CLIP: {
      const float low = two[0], high = three[0];
      for (int64_t i = 0; i < size; ++i) {
        const float x = one[i * of], above = x < low ? low : x;
        out[i * by] = above > high ? high : above;
      }
      break;
    }
    case IS_NAN: EACH((float)(x != x)); break;
    case NOT: EACH((float)(x == 0)); break;
    case NEGATE: EACH(-x); break;
    case ABSOLUTE: EACH(fabsf(x)); break;
    case ROOT: EACH(sqrtf(x)); break;
    case LOGARITHM: EACH(logf(x)); break;
    case EXPONENT: EACH(expf(x)); break;
    case TANGENT: EACH(tanhf(x)); break;
    case SIGMOID: EACH(1 / (1 + expf(-x))); break;
    case RECTIFY: EACH(x < 0 ? 0 : x); break;
    case ERROR: EACH(erff(x)); break;
  }
}

static int64_t place(const Operand* operand, int64_t i, int64_t j, int64_t k)
{
  return operand->first + i * operand->steps[0] + j * operand->steps[1] + k * operand->steps[2];
}

#define FLOATS(operand) ((float*)arrays[(operand).array])

ALWAYS_INLINE void run_elements(const Loop* loop, char* const* arrays)
{
  for (int64_t i = 0; i < loop->sizes[0]; ++i)
    for (int64_t j = 0; j < loop->sizes[1]; ++j)
      for (int64_t k = 0; k < loop->sizes[2]; ++k) {
        const int64_t first = place(&loop->one, i, j, k);
        run_row(loop, arrays, first, FLOATS(loop->out) + place(&loop->out, i, j, k),
                loop->kind < COPY ? NULL : FLOATS(loop->one) + first,
                FLOATS(loop->two) + place(&loop->two, i, j, k), FLOATS(loop->three) + place(&loop->three, i, j, k));
      }
}

/* ---------------------------------------------------------------------------------------------------------- the others */

/* The sum or the maximum along the last axis. */
ALWAYS_INLINE void run_reduction(const Loop* loop, char* const* arrays)
{
  const int64_t across = loop->sizes[2], size = loop->sizes[3], next = loop->one.steps[3];
  const int64_t by = loop->out.steps[2], of = loop->one.steps[2];
  for (int64_t i = 0; i < loop->sizes[0]; ++i)
    for (int64_t j = 0; j < loop->sizes[1]; ++j) {
      float* const out = FLOATS(loop->out) + place(&loop->out, i, j, 0);
      const float* one = FLOATS(loop->one) + place(&loop->one, i, j, 0);
      for (int64_t k = 0; k < across; ++k) out[k * by] = one[k * of];
      for (int64_t at = 1; at < size; ++at) {
        one += next;
        if (loop->kind == SUM && by == 1 && of == 1)
          for (int64_t k = 0; k < across; ++k) out[k] += one[k];
        else if (loop->kind == SUM)
          for (int64_t k = 0; k < across; ++k) out[k * by] += one[k * of];
        else
          for (int64_t k = 0; k < across; ++k)
            if (one[k * of] > out[k * by] || one[k * of] != one[k * of]) out[k * by] = one[k * of];
      }
    }
}

/* One tile of a matrix product, `rows` rows by `vectors` vectors, held in registers: both are constants in
 * every call. The last vector has `columns` real columns; the second factor is padded beyond its last
 * column. */
ALWAYS_INLINE void multiply_tile(const Loop* loop, int64_t rows, int64_t vectors, int64_t columns, float* out,
                                 const float* one, const float* two)
{
  const int64_t depth = loop->sizes[3], by = loop->out.steps[1], of = loop->one.steps[1];
  const int64_t along = loop->one.steps[3], next = loop->two.steps[3];
  Lanes sums[8][2], parts[2];
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t vector = 0; vector < vectors; ++vector) sums[row][vector] = (Lanes){0};
  for (int64_t at = 0; at < depth; ++at) {
    for (int64_t vector = 0; vector < vectors; ++vector)
      memcpy(&parts[vector], two + at * next + vector * LANES, sizeof *parts);
    for (int64_t row = 0; row < rows; ++row) {
      const float factor = one[row * of + at * along];
      for (int64_t vector = 0; vector < vectors; ++vector) sums[row][vector] += factor * parts[vector];
    }
  }
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t vector = 0; vector < vectors; ++vector) {
      float* const to = out + row * by + vector * LANES;
      if (columns == LANES || vector + 1 < vectors)
        memcpy(to, &sums[row][vector], sizeof *sums[row]);
      else
        for (int64_t column = 0; column < columns; ++column) to[column] = sums[row][vector][column];
    }
}

/* Like multiply_tile, with one vector of sixteen columns. */
ALWAYS_INLINE void multiply_wide_tile(const Loop* loop, int64_t rows, float* out, const float* one, const float* two)
{
  const int64_t depth = loop->sizes[3], by = loop->out.steps[1], of = loop->one.steps[1];
  const int64_t along = loop->one.steps[3], next = loop->two.steps[3];
  Wide sums[12], part;
  for (int64_t row = 0; row < rows; ++row) sums[row] = (Wide){0};
  for (int64_t at = 0; at < depth; ++at) {
    memcpy(&part, two + at * next, sizeof part);
    for (int64_t row = 0; row < rows; ++row) sums[row] += one[row * of + at * along] * part;
  }
  for (int64_t row = 0; row < rows; ++row) memcpy(out + row * by, &sums[row], sizeof part);
}

/* Multiply all complete groups of sixteen columns, with vectors of that width; return the number of these columns. */
FOR_SIXTEEN_LANES static int64_t multiply_wide(const Loop* loop, float* out, const float* one, const float* two)
{
  const int64_t rows = loop->sizes[1], by = loop->out.steps[1], of = loop->one.steps[1];
  int64_t column = 0;
  for (; column + WIDE <= loop->sizes[2]; column += WIDE) {
    int64_t row = 0;
    for (; row + 12 <= rows; row += 12) multiply_wide_tile(loop, 12, out + row * by + column, one + row * of, two + column);
    for (; row + 4 <= rows; row += 4) multiply_wide_tile(loop, 4, out + row * by + column, one + row * of, two + column);
    for (; row < rows; ++row) multiply_wide_tile(loop, 1, out + row * by + column, one + row * of, two + column);
  }
  return column;
}

/* Products of matrices: sizes are products, rows, columns, depth. The columns of the second factor lie side by side,
 * with room up to a multiple of LANES. */
ALWAYS_INLINE void run_product(const Loop* loop, char* const* arrays)
{
  const int64_t rows = loop->sizes[1], columns = loop->sizes[2];
  for (int64_t product = 0; product < loop->sizes[0]; ++product) {
    int64_t column = 0;
    if (SIXTEEN_LANES)
      column = multiply_wide(loop, FLOATS(loop->out) + place(&loop->out, product, 0, 0),
                             FLOATS(loop->one) + place(&loop->one, product, 0, 0),
                             FLOATS(loop->two) + place(&loop->two, product, 0, 0));
    while (column < columns) {
      float* const out = FLOATS(loop->out) + place(&loop->out, product, 0, column);
      const float* const one = FLOATS(loop->one) + place(&loop->one, product, 0, 0);
      const float* const two = FLOATS(loop->two) + place(&loop->two, product, 0, column);
      const int64_t by = loop->out.steps[1], of = loop->one.steps[1], left = columns - column;
      const int64_t last = left < LANES ? left : LANES;
      int64_t row = 0;
      if (left >= 2 * LANES) {
        for (; row + 6 <= rows; row += 6) multiply_tile(loop, 6, 2, LANES, out + row * by, one + row * of, two);
        for (; row < rows; ++row) multiply_tile(loop, 1, 2, LANES, out + row * by, one + row * of, two);
        column += 2 * LANES;
      } else {
        for (; row + 8 <= rows; row += 8) multiply_tile(loop, 8, 1, last, out + row * by, one + row * of, two);
        for (; row < rows; ++row) multiply_tile(loop, 1, 1, last, out + row * by, one + row * of, two);
        column += last;
      }
    }
  }
}

/* For so few numbers, a call of memcpy takes longer than a loop. */
ALWAYS_INLINE void copy_row(float* to, const float* from, int64_t width)
{
  int64_t at = 0;
  for (; at + LANES <= width; at += LANES) memcpy(to + at, from + at, sizeof(Lanes));
  for (; at < width; ++at) to[at] = from[at];
}

/* Gather the rows `one` (integers) of the table `two` along the last axis. Return how many rows are out of
 * range. */
ALWAYS_INLINE int64_t gather(const Loop* loop, char* const* arrays)
{
  const int64_t width = loop->sizes[3];
  const char* const given = arrays[loop->one.array];
  int64_t beyond = 0;
  for (int64_t i = 0; i < loop->sizes[0]; ++i)
    for (int64_t j = 0; j < loop->sizes[1]; ++j)
      for (int64_t k = 0; k < loop->sizes[2]; ++k) {
        const int64_t at = place(&loop->one, i, j, k);
        const int64_t row = loop->kind == GATHER_INT64 ? ((const int64_t*)given)[at] : ((const int32_t*)given)[at];
        if ((uint64_t)row >= (uint64_t)loop->rows)
          ++beyond;
        else
          copy_row(FLOATS(loop->out) + place(&loop->out, i, j, k),
                   FLOATS(loop->two) + loop->two.first + row * loop->two.steps[0], width);
      }
  return beyond;
}

FOR_EACH_PROCESSOR static int64_t run_all(int64_t count, const Loop* loops, char* const* arrays)
{
  int64_t beyond = 0;
  for (const Loop* loop = loops; loop < loops + count; ++loop) {
    if (loop->kind == PRODUCT)
      run_product(loop, arrays);
    else if (loop->kind == SUM || loop->kind == HIGHEST)
      run_reduction(loop, arrays);
    else if (loop->kind == GATHER_INT32 || loop->kind == GATHER_INT64)
      beyond += gather(loop, arrays);
    else
      run_elements(loop, arrays);
  }
  return beyond;
}

/* Run `count` loops for each user.
 *
 *   arrays     [places]: addresses of weights, work space, inputs and outputs; modified
 *   distances  [places]: bytes from one user's data to the next user's
 *
 * Return how many gathered rows are out of range; unless it is 0, the results are invalid. */
EXPORT int64_t run_loops(int64_t users, int64_t count, int64_t places, const int64_t* loops, char** arrays,
                         const int64_t* distances)
{
  int64_t beyond = 0;
  for (int64_t user = 0; user < users; ++user) {
    beyond += run_all(count, (const Loop*)loops, arrays);
    for (int64_t at = 0; at < places; ++at) arrays[at] += distances[at];
  }
  return beyond;
}
