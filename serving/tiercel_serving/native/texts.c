/* Looks up the codes of many byte strings in a hash table, and splits NUL-terminated strings.
 *
 * Results equal those of lookup.py and perfect_hash.py in NumPy, in one pass and without temporaries. There,
 * each step goes through all strings, and the table's records are fetched from memory one by one. Here, a
 * block of strings is hashed, the records it needs are prefetched, and then they are compared.
 *
 * Plain C functions without Python's headers; texts.py calls them. Words are little-endian, as in the
 * tables.
 */
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* The constants of perfect_hash.py. */
static const uint64_t GOLDEN = 0x9E3779B97F4A7C15u, MULTIPLIER = 0xD6E8FEB86659FD93u, DISPLACER = 0xBF58476D1CE4E5B9u;

enum { MOST_WORDS = 15, AHEAD = 32 };

/* COLUMN_PARTS of lookup.py. */
enum { SEED, BUCKETS, FIRST_BUCKET, SLOTS, FIRST_SLOT, FIRST_ODD, END_ODD, MISSING };

/* `length` bytes of a blob, at most 8, as a word padded with NULs. */
static uint64_t word_at(const uint8_t* blob, int64_t size, int64_t at, int64_t length)
{
  uint64_t word = 0;
  if (size - at < 8) {
    memcpy(&word, blob + at, (size_t)length);
    return word;
  }
  memcpy(&word, blob + at, 8);
  return length < 8 ? word & (((uint64_t)1 << 8 * length) - 1) : word;
}

/* find_texts for a number of words that is a compile-time constant. */
static inline __attribute__((always_inline)) int64_t find(const uint8_t* blob, int64_t size, const int64_t* offsets,
                                                          int64_t n, int64_t gap, const uint64_t* records,
                                                          const int64_t words, const uint16_t* displacements,
                                                          const int64_t* column, int64_t* codes, int64_t* odd)
{
  const uint64_t seed = (uint64_t)column[SEED], buckets = (uint64_t)column[BUCKETS], slots = (uint64_t)column[SLOTS];
  const uint16_t* displacement = displacements + column[FIRST_BUCKET];
  const uint64_t* table = records + column[FIRST_SLOT] * (words + 1);
  int64_t odds = 0;
  for (int64_t first = 0; first < n; first += AHEAD) {
    const int64_t count = n - first < AHEAD ? n - first : AHEAD;
    uint64_t keys[AHEAD][MOST_WORDS], hashes[AHEAD];
    const uint64_t* found[AHEAD];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t begin = offsets[first + i], length = offsets[first + i + 1] - gap - begin;
      found[i] = NULL;
      hashes[i] = 0;
      if (begin < 0 || length < 0 || length > 8 * words || begin + length > size ||
          (length > 0 && blob[begin + length - 1] == 0)) {
        odd[odds++] = first + i;
        continue;
      }
      uint64_t h = 0;
      for (int64_t word = 0; word < words; ++word) {
        const int64_t left = length - 8 * word;
        const uint64_t key = left > 0 ? word_at(blob, size, begin + 8 * word, left < 8 ? left : 8) : 0;
        keys[i][word] = key;
        h = word == 0 ? key * seed : ((h ^ h >> 32) + key) * MULTIPLIER;
      }
      h = (h ^ h >> 32) * MULTIPLIER;
      hashes[i] = h;
      found[i] = table;
      __builtin_prefetch(displacement + ((h >> 32) * buckets >> 32));
    }
    for (int64_t i = 0; i < count; ++i) {
      if (found[i] == NULL) continue;
      const uint64_t h = hashes[i], moved = h ^ displacement[(h >> 32) * buckets >> 32] * DISPLACER;
      found[i] = table + ((moved * GOLDEN >> 32) * slots >> 32) * (uint64_t)(words + 1);
      for (int64_t word = 0; word <= words; word += 8) __builtin_prefetch(found[i] + word);
    }
    for (int64_t i = 0; i < count; ++i) {
      if (found[i] == NULL) continue;
      uint64_t differing = 0;
      for (int64_t word = 0; word < words; ++word) differing |= found[i][word] ^ keys[i][word];
      codes[first + i] = differing == 0 ? (int64_t)found[i][words] : column[MISSING];
    }
  }
  return odds;
}

/* Look up strings in one column of a table.
 *
 *   blob, size    the bytes of all strings, and their number
 *   offsets, n    [n + 1]: string i is blob[offsets[i] : offsets[i + 1] - gap]
 *   records       [slots, words + 1], displacements [buckets], column [8]: those of the table, checked by the caller
 *   codes         [n]: the codes found, or the column's missing code
 *   odd           [n]: positions of the strings that a record cannot hold; their codes are not set
 *
 * Returns the number of odd strings; -1 if tables never have this number of words. */
EXPORT int64_t find_texts(const uint8_t* blob, int64_t size, const int64_t* offsets, int64_t n, int64_t gap,
                          const uint64_t* records, int64_t words, const uint16_t* displacements, const int64_t* column,
                          int64_t* codes, int64_t* odd)
{
#define FIND(count) \
  case count: return find(blob, size, offsets, n, gap, records, count, displacements, column, codes, odd);
  switch (words) {
    FIND(1)
    FIND(3)
    FIND(7)
    FIND(15)
  }
  return -1;
}

/* Write the offsets at which n NUL-terminated strings begin, and the end of the last one.
 *
 * Returns the number of strings found, which is less than n if there are fewer NULs. */
EXPORT int64_t split_texts(const uint8_t* blob, int64_t size, int64_t n, int64_t* offsets)
{
  const uint64_t low = 0x7F7F7F7F7F7F7F7Fu;
  int64_t at = 0, found = 0;
  offsets[0] = 0;
  for (; found < n && at < size; at += 8) {
    const uint64_t word = word_at(blob, size, at, size - at < 8 ? size - at : 8);
    /* The highest bit of each byte that is 0 (Warren, "Hacker's Delight", 6-1). */
    uint64_t nuls = ~(((word & low) + low) | word | low);
    for (; nuls != 0 && found < n; nuls &= nuls - 1) {
      const int64_t end = at + __builtin_ctzll(nuls) / 8 + 1;
      if (end <= size) offsets[++found] = end; /* NULs that pad the last word do not end a string */
    }
  }
  return found;
}
