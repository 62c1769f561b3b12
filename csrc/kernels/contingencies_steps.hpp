// The loops of contingencies.hpp for one instruction set, in the compilers' own vector types: a
// block of images is one vector, its width the only difference. What the vector types cannot say
// (one bit for each byte, whether any bit is set) is said once for each set.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/contingencies.hpp"

#if defined(CAUSALPRUNE_WITNESS_BYTES)

#if CAUSALPRUNE_WITNESS_BYTES >= 32
#include <immintrin.h>
#endif

namespace causalprune {

namespace {

inline constexpr int kBytes = CAUSALPRUNE_WITNESS_BYTES;
inline constexpr std::int64_t kWords = kBytes / 8;

#if CAUSALPRUNE_WITNESS_BYTES == 8
typedef std::uint64_t Bits;
#else
typedef std::uint64_t Bits __attribute__((vector_size(kBytes)));
#endif

inline Bits load(const std::uint64_t* p) {
  Bits value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
inline void store(std::uint64_t* p, const Bits& value) { std::memcpy(p, &value, sizeof value); }

#if CAUSALPRUNE_WITNESS_BYTES == 64

inline bool any(const Bits& value) {
  __m512i v;
  std::memcpy(&v, &value, sizeof v);
  return _mm512_test_epi64_mask(v, v) != 0;
}
inline std::uint64_t word_of(const std::uint8_t* bytes) {
  const __m512i v = _mm512_loadu_si512(bytes);
  return _mm512_test_epi8_mask(v, v);
}
inline std::uint64_t word_of(const std::uint8_t* bytes, std::int64_t n) {
  const __m512i v = _mm512_maskz_loadu_epi8((std::uint64_t{1} << n) - 1, bytes);
  return _mm512_test_epi8_mask(v, v);
}

#elif CAUSALPRUNE_WITNESS_BYTES == 32

inline bool any(const Bits& value) {
  __m256i v;
  std::memcpy(&v, &value, sizeof v);
  return _mm256_testz_si256(v, v) == 0;
}
inline std::uint64_t half_of(const std::uint8_t* bytes) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  const __m256i zero = _mm256_cmpeq_epi8(v, _mm256_setzero_si256());
  return ~static_cast<std::uint32_t>(_mm256_movemask_epi8(zero));
}
inline std::uint64_t word_of(const std::uint8_t* bytes) {
  return half_of(bytes) | half_of(bytes + 32) << 32;
}

#else

inline bool any(const Bits& value) {
#if CAUSALPRUNE_WITNESS_BYTES == 8
  return value != 0;
#else
  return (value[0] | value[1]) != 0;
#endif
}
// Eight bytes at a time; the product moves their lowest bits side by side into the highest byte.
inline std::uint64_t word_of(const std::uint8_t* bytes) {
  static_assert(std::endian::native == std::endian::little);
  std::uint64_t word = 0;
  for (int k = 0; k < 8; ++k) {
    std::uint64_t eight;
    std::memcpy(&eight, bytes + 8 * k, sizeof eight);
    eight |= eight >> 4;
    eight |= eight >> 2;
    eight |= eight >> 1;
    eight &= 0x0101010101010101u;
    word |= eight * 0x0102040810204080u >> 56 << 8 * k;
  }
  return word;
}

#endif

#if CAUSALPRUNE_WITNESS_BYTES < 64
inline std::uint64_t word_of(const std::uint8_t* bytes, std::int64_t n) {
  std::uint8_t word[kImagesInWord] = {};
  std::memcpy(word, bytes, static_cast<std::size_t>(n));
  return word_of(word);
}
#endif

void pack(const std::uint8_t* bytes, std::int64_t n, std::uint64_t* bits) {
  std::int64_t k = 0;
  for (; k + kImagesInWord <= n; k += kImagesInWord) *bits++ = word_of(bytes + k);
  if (k < n) *bits = word_of(bytes + k, n - k);
}

// A full adder for every image: low and both terms weigh the same, the carry that is returned twice
// as much. What the next adder waits for is one operation.
inline Bits add(Bits& low, const Bits& a, const Bits& b) {
  const Bits odd = a ^ b;
  const Bits carry = (a & b) | (low & odd);
  low ^= odd;
  return carry;
}

struct Counter {
  Bits ones{}, twos{}, fours{}, eights{};
  Bits higher[60];  // sixteens and so on, so many of them as have been reached
  int n_higher = 0;

  void add_sixteens(Bits carry) {
    for (int p = 0; any(carry); ++p) {
      if (p == n_higher) higher[n_higher++] = Bits{};
      const Bits both = higher[p] & carry;
      higher[p] ^= carry;
      carry = both;
    }
  }

  void write(std::int64_t n_words, std::int64_t* tally) const {
    std::uint64_t bits[64][kWords];
    const int n = n_higher + 4;
    store(bits[0], ones);
    store(bits[1], twos);
    store(bits[2], fours);
    store(bits[3], eights);
    for (int p = 4; p < n; ++p) store(bits[p], higher[p - 4]);
    for (std::int64_t word = 0; word < n_words; ++word) {
      std::uint64_t sum[kImagesInWord] = {};
      for (int p = 0; p < n; ++p) {
        const std::uint64_t plane = bits[p][word];
        for (std::uint64_t image = 0; image < kImagesInWord; ++image) {
          sum[image] += (plane >> image & 1) << p;
        }
      }
      std::memcpy(tally + word * kImagesInWord, sum, sizeof sum);
    }
  }
};

// Sixteen rows from `at` on; returns what any of them has.
inline Bits add_rows(const WitnessRows& rows, std::int64_t at, Counter& sum) {
  const auto row = [&](std::int64_t k) {
    return load(rows.flipped + rows.removed[at + k] * kWords) &
           ~load(rows.flipped + rows.rest[at + k] * kWords);
  };
  Bits seen{}, fours[2], eights[2];
  for (int half = 0; half < 2; ++half) {
    for (int quarter = 0; quarter < 2; ++quarter) {
      const std::int64_t k = 8 * half + 4 * quarter;
      const Bits a = row(k), b = row(k + 1), c = row(k + 2), d = row(k + 3);
      seen |= (a | b) | (c | d);
      const Bits first = add(sum.ones, a, b), second = add(sum.ones, c, d);
      fours[quarter] = add(sum.twos, first, second);
    }
    eights[half] = add(sum.fours, fours[0], fours[1]);
  }
  sum.add_sixteens(add(sum.eights, eights[0], eights[1]));
  return seen;
}

void note_first(const WitnessRows& rows, std::int64_t at, Bits& open, std::int64_t* first) {
  for (std::int64_t k = at; k < at + kWitnessRows; ++k) {
    const Bits has = load(rows.flipped + rows.removed[k] * kWords) &
                     ~load(rows.flipped + rows.rest[k] * kWords) & open;
    if (!any(has)) continue;
    std::uint64_t words[kWords];
    store(words, has);
    for (std::int64_t word = 0; word < kWords; ++word) {
      for (std::uint64_t left = words[word]; left != 0; left &= left - 1) {
        first[word * kImagesInWord + __builtin_ctzll(left)] = rows.removed[k];
      }
    }
    open &= ~has;
  }
}

void count(const WitnessRows& rows, std::int64_t* tally, std::uint64_t* open_words,
           std::int64_t* first) {
  Counter sum;
  Bits open = load(open_words);
  for (std::int64_t at = 0; at < rows.n; at += kWitnessRows) {
    const Bits seen = add_rows(rows, at, sum);
    if (any(seen & open)) note_first(rows, at, open, first);
  }
  store(open_words, open);
  sum.write(rows.n_words, tally);
}

}  // namespace

}  // namespace causalprune

#endif
