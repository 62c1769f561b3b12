// The packed layout: sixteen lanes innermost, so that a convolution's shifted loads stay aligned.
//
// [block][channel][padded row][padded column][16]. The lanes of a block are `images` images times
// `rows` row strips times `columns` column strips of each (their product is sixteen): lane
// (i * rows + a) * columns + b holds rows [a * strip_height, (a + 1) * strip_height) and columns
// [b * strip_width, (b + 1) * strip_width) of image block * images + i. Around every strip lie
// `top`, `bottom`, `left` and `right` rows and columns of halo: what neighbouring strips hold, or
// what lies outside the image. Neither the halo nor what lies beyond the image inside a strip
// (where strips are ragged) is valid until a HaloFill has run.
#pragma once

#include <cstdint>

namespace causalprune {

inline constexpr std::int64_t kPackedLanes = 16;

struct PackedLayout {
  std::int64_t n_images, n_channels, height, width;
  std::int64_t images, rows, columns;
  std::int64_t strip_height, strip_width;
  std::int64_t top, bottom, left, right;

  std::int64_t n_blocks() const { return (n_images + images - 1) / images; }
  std::int64_t padded_height() const { return top + strip_height + bottom; }
  std::int64_t padded_width() const { return left + strip_width + right; }
  std::int64_t row_floats() const { return padded_width() * kPackedLanes; }
  std::int64_t channel_floats() const { return padded_height() * row_floats(); }
  std::int64_t block_floats() const { return n_channels * channel_floats(); }
  std::int64_t floats() const { return n_blocks() * block_floats(); }
  // Of the first position of a strip, behind the halo.
  std::int64_t interior() const { return (top * padded_width() + left) * kPackedLanes; }
  // Whether the strips of two layouts hold the same positions of the same images.
  bool same_strips(const PackedLayout& other) const {
    return n_images == other.n_images && height == other.height && width == other.width &&
           images == other.images && rows == other.rows && columns == other.columns &&
           strip_height == other.strip_height && strip_width == other.strip_width;
  }
};

// Throws std::invalid_argument for sizes that do not make a layout, or whose block does not fit
// into the 31 bits of an offset.
void check_layout(const PackedLayout& layout, const char* name);

// Where a tensor in this layout lies: `data` is the first position of channel 0 of block 0. Steps
// are in floats.
struct PackedView {
  float* data;
  std::int64_t row_step, channel_step, block_step;
};

inline PackedView view_of(const PackedLayout& layout, float* memory) {
  return {memory + layout.interior(), layout.row_floats(), layout.channel_floats(),
          layout.block_floats()};
}

}  // namespace causalprune
