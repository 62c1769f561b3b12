#include "kernels/packed_blocking.hpp"

#include <algorithm>
#include <utility>

namespace causalprune {

namespace {

std::int64_t weights_of(const PackedConvolutionProblem& p) {
  const auto n_rows = static_cast<std::int64_t>(p.outputs.size());
  return n_rows * (static_cast<std::int64_t>(p.inputs.size()) / p.groups) * p.kernel_height *
         p.kernel_width;
}

// The bytes that a tile reads of one input channel.
std::int64_t footprint_bytes(const PackedConvolutionProblem& p, std::int64_t height,
                             std::int64_t width) {
  const std::int64_t tall =
      std::min(height * p.kernel_height,
               (height - 1) * p.stride_height + (p.kernel_height - 1) * p.dilation_height + 1);
  const std::int64_t wide =
      std::min(width * p.kernel_width,
               (width - 1) * p.stride_width + (p.kernel_width - 1) * p.dilation_width + 1);
  return tall * wide * kPackedLanes * 4;
}

// Cycles that a tap takes on a tile, roughly: two multiply-adds and two loads a cycle, and the
// next tap waits for the sums of the last one.
double tap_cycles(int rows, std::int64_t vectors) {
  const double adds = 0.5 * rows * static_cast<double>(vectors);
  const double loads = 0.5 * static_cast<double>(vectors + rows + (rows == 1 ? 2 : 1));
  return std::max({4.0, adds, loads});
}

// The input channels whose tile fits into so many bytes of cache.
std::int64_t fitting_channels(const PackedConvolutionProblem& p, std::int64_t height,
                              std::int64_t width, std::int64_t bytes) {
  const std::int64_t n_inputs = static_cast<std::int64_t>(p.inputs.size()) / p.groups;
  return std::clamp<std::int64_t>(bytes / footprint_bytes(p, height, width), 1, n_inputs);
}

// About the first-level cache of 32 or 48 KiB that is left beside weights and sums.
constexpr std::int64_t kTileBytes = 24 << 10;

// A tile's estimated cycles over a strip, of one row with `taps` weights that are read: its taps,
// and what every block of channels costs to begin and to end.
double strip_cycles(const PackedConvolutionProblem& p, double taps, int rows, std::int64_t height,
                    std::int64_t width) {
  const PackedLayout& out = p.out;
  const std::int64_t n_inputs = static_cast<std::int64_t>(p.inputs.size()) / p.groups;
  const std::int64_t channels = fitting_channels(p, height, width, kTileBytes);
  const double blocks =
      std::min(taps + 1.0, static_cast<double>((n_inputs + channels - 1) / channels));
  const auto cycles = [&](std::int64_t vectors) {
    const auto size = static_cast<double>(vectors);
    const double ends = 45.0 + 1.5 * rows * size;
    // In blocks that fit into the first-level cache, or at once out of the second.
    return std::min(taps * tap_cycles(rows, vectors) + blocks * ends,
                    taps * std::max(tap_cycles(rows, vectors), 1.6 * size + 2.0) + ends);
  };
  double sum = 0.0;
  for (std::int64_t y = 0; y < out.strip_height; y += height) {
    const std::int64_t tall = std::min(height, out.strip_height - y);
    const std::int64_t full = out.strip_width / width, rest = out.strip_width % width;
    sum += static_cast<double>(full) * cycles(tall * width);
    if (rest > 0) sum += cycles(tall * rest);
  }
  return sum / rows;
}

}  // namespace

const PackedConvolutionKernels& packed_kernels_of(Isa isa) {
  switch (isa) {
#if defined(CAUSALPRUNE_HAS_AVX2)
    case Isa::avx2: return kPackedConvolutionAvx2;
#endif
#if defined(CAUSALPRUNE_HAS_AVX512)
    case Isa::avx512: return kPackedConvolutionAvx512;
#endif
#if defined(CAUSALPRUNE_HAS_NEON)
    case Isa::neon: return kPackedConvolutionNeon;
#endif
    default: return kPackedConvolutionScalar;
  }
}

int column_stride_of(std::int64_t stride) {
  return stride == 1 || stride == 2 ? static_cast<int>(stride) : 0;
}

bool usable(const PackedConvolutionKernels& kernels, const PackedBlocking& b, int column_stride) {
  return kernels.tile(b.rows_per_group, b.tile_height, b.tile_width, column_stride) != nullptr;
}

std::vector<PackedBlocking> likely_tiles(const PackedConvolutionProblem& p, int rows, Isa isa,
                                         std::size_t most) {
  const PackedConvolutionKernels& kernels = packed_kernels_of(isa);
  const auto n_rows = static_cast<double>(p.outputs.size());
  const std::int64_t n_weights = weights_of(p);
  const std::int64_t read =
      rows == 1 ? n_weights - std::count(p.weight, p.weight + n_weights, 0.0f) : n_weights;
  std::vector<std::pair<double, PackedBlocking>> found;
  for (int height = 1; height <= std::min<std::int64_t>(4, p.out.strip_height); ++height) {
    for (int width = 1; width <= std::min<std::int64_t>(kernels.most_vectors, p.out.strip_width);
         ++width) {
      const PackedBlocking b{rows, height, width, 0};
      if (!usable(kernels, b, column_stride_of(p.stride_width))) continue;
      found.push_back(
          {strip_cycles(p, static_cast<double>(read) / n_rows, rows, height, width), b});
    }
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<PackedBlocking> tiles;
  for (const auto& each : found) {
    if (tiles.size() < most) tiles.push_back(each.second);
  }
  return tiles;
}

std::vector<std::int64_t> likely_blocks(const PackedConvolutionProblem& p,
                                        const PackedBlocking& tile) {
  std::vector<std::int64_t> blocks;
  for (const std::int64_t times : {1, 2, 4, 16}) {
    const std::int64_t channels =
        fitting_channels(p, tile.tile_height, tile.tile_width, times * kTileBytes * 2 / 3);
    if (std::find(blocks.begin(), blocks.end(), channels) == blocks.end()) {
      blocks.push_back(channels);
    }
  }
  return blocks;
}

}  // namespace causalprune
