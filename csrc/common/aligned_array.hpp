// Arrays for kernels: 64-byte aligned, not initialised, freed with their owner.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "common/error.hpp"

namespace causalprune {

struct AlignedDelete {
  void operator()(void* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
template <class T>
using AlignedArray = std::unique_ptr<T[], AlignedDelete>;

template <class T>
AlignedArray<T> aligned_array(std::int64_t count) {
  const auto bytes = checked_product(std::max<std::int64_t>(count, 1), sizeof(T));
  return AlignedArray<T>(
      static_cast<T*>(::operator new[](static_cast<std::size_t>(bytes), std::align_val_t{64})));
}

}  // namespace causalprune
