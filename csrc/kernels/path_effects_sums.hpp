// What the inner loops of path_effects share: the effect of an activation, the sums of an edge.
#pragma once

#include "common/vec16f.hpp"
#include "kernels/activations_tile.hpp"
#include "kernels/path_effects.hpp"

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

// An activation gives `value` = phi, and how a tile is prepared from it: d = change(start - c,
// after). `monotone`: with x >= 0 every d of an edge has the sign of -weight, so sum |d| = |sum d|.
struct Identity {
  static constexpr bool monotone = true;
  static constexpr int columns = kColumns;
  static CAUSALPRUNE_INLINE void prepare(vec16f& start, vec16f& after) { start = after = zero(); }
  static CAUSALPRUNE_INLINE vec16f change(vec16f remaining, vec16f) { return remaining; }
};

struct Relu {
  static constexpr bool monotone = true;
  static constexpr int columns = kColumns;
  static CAUSALPRUNE_INLINE void prepare(vec16f& start, vec16f& after) {
    after = sub(zero(), max(start, zero()));
    start = min(start, zero());
  }
  static CAUSALPRUNE_INLINE vec16f change(vec16f remaining, vec16f after) {
    return max(remaining, after);
  }
};

template <class Phi>
struct Smooth {
  static constexpr bool monotone = false;
  static constexpr int columns = kColumns < 2 ? kColumns : 2;
  static CAUSALPRUNE_INLINE void prepare(vec16f& start, vec16f& after) {
    after = Phi::value(start);
  }
  static CAUSALPRUNE_INLINE vec16f change(vec16f remaining, vec16f after) {
    return sub(Phi::value(remaining), after);
  }
};

// The running sums of one edge block in registers: all statistics, or the weighted sum alone. The
// last one is taken by image, which is what a unit's sum is made of.
template <bool All, bool Weighted, bool NeedsAbs>
struct EdgeSums {
  static constexpr int floats = All ? 64 : 16;
  vec16f sum = zero(), absolute = zero(), square = zero(), last = zero(), image = zero();

  CAUSALPRUNE_INLINE void take(vec16f d, vec16f weighting) {
    if constexpr (All) {
      sum = add(sum, d);
      square = fmadd(d, d, square);
    }
    if constexpr (All && NeedsAbs) absolute = add(absolute, abs(d));
    image = Weighted ? fmadd(d, weighting, image) : add(image, d);
  }

  CAUSALPRUNE_INLINE void end_image(float* unit) {
    store(unit, add(load(unit), image));
    last = add(last, image);
    image = zero();
  }

  CAUSALPRUNE_INLINE void flush(float* partial) const {
    if constexpr (All) {
      store(partial, add(load(partial), sum));
      store(partial + 16, add(load(partial + 16), NeedsAbs ? absolute : abs(sum)));
      store(partial + 32, add(load(partial + 32), square));
    }
    store(partial + floats - 16, add(load(partial + floats - 16), last));
  }
};

template <bool Weighted>
CAUSALPRUNE_INLINE vec16f weighting_at(const PathTile& tile, std::int64_t at) {
  return Weighted ? load(tile.weighting + at) : zero();
}

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
