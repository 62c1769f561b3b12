// Contingency sets: without which other units a unit decides an event, image by image.
//
// Definition (Chockler and Halpern's responsibility, of binary variables that are removed or not).
// Row m of sets [M, U] is a set of units that were removed together, flipped [M, N] tells whether
// the event flipped on image n when they were. The empty set is implied, and flips on no image.
// W is a contingency set of unit f on image n when
//     W is the empty set or a row that is not flipped on n, f is not in W,
//     and W with f is a row that is flipped on n.
//     counts[n, f, k] = number of contingency sets of k units
//     first[n, f]     = the first row, in the order of sizes and then of rows, that is such a set
//                       with f; -1 where there is none
//
// Method. Rows of `flipped` are packed to bits, images side by side. For every (row S, unit f in S)
// the row of S - f is found once, by a hash that is the exclusive or of its units'. Then the images
// on which S - f is a contingency set are F[S] & ~F[S - f]. For every (f, k) these bit rows are
// added up per image in bit-sliced counters: sixteen rows go through a tree of full adders (Harley
// and Seal's), whose carry ripples through the higher bits.
//
// Accumulators. Whole numbers: exact. Limits: M and the units of a row below 2^31. Workspace: about
// M * N / 8 bytes and 24 bytes for every unit of every row.
// Determinism. Every (f, images) has one owner: the same bits for any number of threads and any
// instruction set. Thread safety: no state.
#pragma once

#include <cstdint>

#include "common/isa.hpp"

namespace causalprune {

// Contiguous, booleans as bytes (any but 0 is true).
struct ContingenciesProblem {
  std::int64_t n_sets, n_units, n_images;
  std::int64_t max_size;        // at least the largest row
  const std::uint8_t* sets;     // [n_sets, n_units]
  const std::uint8_t* flipped;  // [n_sets, n_images]
  std::int64_t* counts;         // [n_images, n_units, max_size]
  std::int64_t* first;          // [n_images, n_units]
};

// Fills counts and first. `threads` is an upper bound. Throws std::invalid_argument for rows that
// are empty, equal or larger than max_size, std::bad_alloc when the workspace cannot be had.
void count_contingencies(const ContingenciesProblem& problem, Isa isa, int threads);

// ---- what each instruction set provides ----

inline constexpr std::int64_t kWitnessRows = 16;   // rows are added up so many at a time
inline constexpr std::int64_t kImagesInWord = 64;  // one bit each

// For one unit and size, on one block of images: F[removed[k]] & ~F[rest[k]] over all k.
struct WitnessRows {
  const std::uint64_t* flipped;  // [rows, words of a block] this block of images
  const std::int32_t* removed;   // [n] S
  const std::int32_t* rest;      // [n] S - f
  std::int64_t n;                // a multiple of kWitnessRows
  std::int64_t n_words;          // words of the block that hold images
};

struct ContingencyKernels {
  std::int64_t words;  // of a block of images
  // One bit for each byte, whether it is not 0; [n / 64 rounded up] words.
  void (*pack)(const std::uint8_t* bytes, std::int64_t n, std::uint64_t* bits);
  // tally [n_words * 64] is set to the number of rows that have the image's bit; where `open` has
  // it too, first [n_words * 64] is set to the first such row's `removed`, and the bit is cleared.
  void (*count)(const WitnessRows& rows, std::int64_t* tally, std::uint64_t* open,
                std::int64_t* first);
};

extern const ContingencyKernels kContingencyKernelsScalar;
extern const ContingencyKernels kContingencyKernelsAvx2;
extern const ContingencyKernels kContingencyKernelsAvx512;
extern const ContingencyKernels kContingencyKernelsNeon;

}  // namespace causalprune
