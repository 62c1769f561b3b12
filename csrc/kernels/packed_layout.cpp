#include "kernels/packed_layout.hpp"

#include "common/error.hpp"

namespace causalprune {

namespace {

void check_least(const char* name, const char* what, std::int64_t value, std::int64_t least) {
  // Far beyond any image, and small enough that sums of a few sizes stay in 64 bits.
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  if (value < least || value > kMost) {
    fail(name, ": expected ", what, " of at least ", least, ", got ", value);
  }
}

}  // namespace

void check_layout(const PackedLayout& l, const char* name) {
  check_least(name, "a number of images", l.n_images, 0);
  check_least(name, "a number of channels", l.n_channels, 0);
  check_least(name, "a height", l.height, 0);
  check_least(name, "a width", l.width, 0);
  check_least(name, "a strip height", l.strip_height, 1);
  check_least(name, "a strip width", l.strip_width, 1);
  for (const std::int64_t count : {l.images, l.rows, l.columns}) {
    check_least(name, "lanes", count, 1);
    if (count > kPackedLanes) fail(name, ": expected at most 16 lanes, got ", count);
  }
  if (l.images * l.rows * l.columns != kPackedLanes) {
    fail(name, ": expected images * rows * columns to be 16 lanes, got ", l.images, " * ", l.rows,
         " * ", l.columns);
  }
  for (const std::int64_t halo : {l.top, l.bottom, l.left, l.right}) {
    check_least(name, "a halo", halo, 0);
  }
  if (checked_product(l.rows, l.strip_height) < l.height ||
      checked_product(l.columns, l.strip_width) < l.width) {
    fail(name, ": expected strips that cover ", l.height, " x ", l.width, ", got ", l.rows, " * ",
         l.strip_height, " x ", l.columns, " * ", l.strip_width);
  }
  constexpr std::int64_t kMostFloats = (std::int64_t{1} << 31) / 4 - 64;
  const std::int64_t plane = checked_product(l.padded_height(), l.row_floats());
  if (checked_product(plane, l.n_channels) > kMostFloats) {
    fail(name, ": expected a block of less than 2 GiB, got ", l.n_channels, " channels of ",
         l.padded_height(), " x ", l.padded_width(), " x 16 floats");
  }
  checked_product(checked_product(plane, l.n_channels), checked_product(l.n_blocks(), 4));
}

}  // namespace causalprune
