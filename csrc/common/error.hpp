// Errors of the native core. std::invalid_argument becomes ValueError in Python, std::bad_alloc
// MemoryError, std::runtime_error RuntimeError.
#pragma once

#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

namespace causalprune {

// One message from its parts: fail("x: expected 4 dimensions, got ", n).
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// a * b for sizes, refusing what does not fit.
inline std::int64_t checked_product(std::int64_t a, std::int64_t b) {
  if (a < 0 || b < 0 || (b != 0 && a > std::numeric_limits<std::int64_t>::max() / b)) {
    fail("a size does not fit in 64 bits: ", a, " * ", b);
  }
  return a * b;
}

}  // namespace causalprune
