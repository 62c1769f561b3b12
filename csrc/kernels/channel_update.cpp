// Checks a channel_update problem, packs its weight and runs its rows.

#include "kernels/channel_update.hpp"

#include <algorithm>
#include <vector>

#include "common/aligned_array.hpp"
#include "common/error.hpp"
#include "common/parallel.hpp"

namespace causalprune {

namespace {

constexpr std::int64_t kLanes = 16;
constexpr std::int64_t kStripRows = 8;

const ChannelUpdateKernels& kernels_of(Isa isa) {
  switch (isa) {
#if defined(CAUSALPRUNE_HAS_AVX2)
    case Isa::avx2: return kChannelUpdateAvx2;
#endif
#if defined(CAUSALPRUNE_HAS_AVX512)
    case Isa::avx512: return kChannelUpdateAvx512;
#endif
#if defined(CAUSALPRUNE_HAS_NEON)
    case Isa::neon: return kChannelUpdateNeon;
#endif
    default: return kChannelUpdateScalar;
  }
}

void check_axis(const char* name, std::int64_t size, std::int64_t kernel, std::int64_t stride,
                std::int64_t padding, std::int64_t dilation, std::int64_t out) {
  // So that none of the products below leaves 64 bits.
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  if (kernel < 1 || kernel > kLimit) fail("weight: expected a kernel of at least 1, got ", kernel);
  if (stride < 1 || stride > kLimit) fail("stride: expected at least 1, got ", stride);
  if (padding < 0 || padding > kLimit) fail("padding: expected at least 0, got ", padding);
  if (dilation < 1 || dilation > kLimit) fail("dilation: expected at least 1, got ", dilation);
  if (kernel * dilation > kLimit) fail("dilation: expected a smaller one, got ", dilation);
  const std::int64_t room = size + 2 * padding - (dilation * (kernel - 1) + 1);
  const std::int64_t expected = room < 0 ? 0 : room / stride + 1;
  if (expected != out) fail("plain: expected ", name, " ", expected, ", got ", out);
}

// [n_changed, kernel_height, kernel_width, lanes], zero in the lanes beyond the last output.
AlignedArray<float> pack_weight(const ChannelUpdateProblem& p, std::int64_t lanes) {
  const std::int64_t taps = p.kernel_height * p.kernel_width;
  const std::int64_t size = checked_product(checked_product(p.n_changed, taps), lanes);
  AlignedArray<float> packed = aligned_array<float>(size);
  std::fill_n(packed.get(), size, 0.0f);
  for (std::int64_t c = 0; c < p.n_changed; ++c) {
    for (std::int64_t k = 0; k < taps; ++k) {
      const float* from = p.weight + c * p.weight_stride[1] +
                          k / p.kernel_width * p.weight_stride[2] +
                          k % p.kernel_width * p.weight_stride[3];
      float* to = packed.get() + (c * taps + k) * lanes;
      for (std::int64_t o = 0; o < p.n_outputs; ++o) to[o] = from[o * p.weight_stride[0]];
    }
  }
  return packed;
}

// What the output rows of a strip see of a difference.
struct Window {
  std::int64_t channels, rows, columns;

  explicit Window(const ChannelUpdateProblem& p)
      : channels(p.n_changed),
        rows((std::min(kStripRows, p.out_height) - 1) * p.stride_height +
             (p.kernel_height - 1) * p.dilation_height + 1),
        columns((p.out_width - 1) * p.stride_width + (p.kernel_width - 1) * p.dilation_width + 1) {}

  std::int64_t size() const { return checked_product(checked_product(channels, rows), columns); }

  // [channels, rows, columns] from output row y on, zero where the padding is.
  void read(const ChannelUpdateProblem& p, std::int64_t image, std::int64_t y, float* to) const {
    const std::int64_t top = y * p.stride_height - p.padding_height;
    const std::int64_t first = std::min(p.padding_width, columns);
    const std::int64_t n = std::clamp<std::int64_t>(p.width, 0, columns - first);
    for (std::int64_t c = 0; c < channels; ++c) {
      const float* plane =
          p.difference + image * p.difference_stride[0] + c * p.difference_stride[1];
      for (std::int64_t row = 0; row < rows; ++row, to += columns) {
        const bool inside = top + row >= 0 && top + row < p.height;
        const std::int64_t from = inside ? first : columns, kept = inside ? n : 0;
        std::fill_n(to, from, 0.0f);
        const float* values = plane + (top + row) * p.difference_stride[2];
        for (std::int64_t k = 0; k < kept; ++k) to[from + k] = values[k * p.difference_stride[3]];
        std::fill(to + from + kept, to + columns, 0.0f);
      }
    }
  }
};

}  // namespace

void check_channel_update(const ChannelUpdateProblem& p) {
  check_axis("height", p.height, p.kernel_height, p.stride_height, p.padding_height,
             p.dilation_height, p.out_height);
  check_axis("width", p.width, p.kernel_width, p.stride_width, p.padding_width, p.dilation_width,
             p.out_width);
  if (p.plain_stride[1] != 1 || p.out_stride[1] != 1) {
    fail("plain, out: expected channels innermost (channels_last)");
  }
}

void channel_update(const ChannelUpdateProblem& p, Isa isa, int threads) {
  check_channel_update(p);
  if (p.n_rows == 0 || p.out_height == 0 || p.out_width == 0 || p.n_outputs == 0) return;
  const std::int64_t lanes = (p.n_outputs + kLanes - 1) / kLanes * kLanes;
  const std::int64_t strips = (p.out_height + kStripRows - 1) / kStripRows;
  const std::int64_t n_tasks = checked_product(p.n_rows, strips);
  const AlignedArray<float> packed = pack_weight(p, lanes);
  const ChannelUpdateKernels& kernels = kernels_of(isa);
  const Window window(p);
  const std::int64_t taps = p.kernel_height * p.kernel_width;
  const std::int64_t work =
      checked_product(checked_product(p.n_rows * p.out_height, p.out_width * lanes),
                      std::max<std::int64_t>(1, p.n_changed * taps));
  const int workers = worker_count(threads, n_tasks, work);
  std::vector<AlignedArray<float>> padded;
  for (int k = 0; k < workers; ++k) padded.push_back(aligned_array<float>(window.size()));
  parallel_for(workers, n_tasks, [&](int worker, std::int64_t task) {
    const std::int64_t image = task / strips, y = task % strips * kStripRows;
    float* difference = padded[static_cast<std::size_t>(worker)].get();
    ChannelUpdateStrip strip{};
    strip.n_rows = std::min(kStripRows, p.out_height - y);
    strip.n_positions = p.out_width;
    strip.n_outputs = p.n_outputs;
    strip.n_changed = p.n_changed;
    strip.kernel_height = p.kernel_height;
    strip.kernel_width = p.kernel_width;
    strip.plain = p.plain + image * p.plain_stride[0] + y * p.plain_stride[2];
    strip.plain_row = p.plain_stride[2];
    strip.plain_position = p.plain_stride[3];
    strip.out = p.out + image * p.out_stride[0] + y * p.out_stride[2];
    strip.out_row = p.out_stride[2];
    strip.out_position = p.out_stride[3];
    strip.difference = difference;
    strip.channel_step = window.rows * window.columns;
    strip.row_step = p.stride_height * window.columns;
    strip.position_step = p.stride_width;
    strip.tap_row_step = p.dilation_height * window.columns;
    strip.tap_column_step = p.dilation_width;
    strip.weight = packed.get();
    strip.lanes = lanes;
    strip.relu = p.relu;
    window.read(p, image, y, difference);
    kernels.strip(strip);
  });
}

}  // namespace causalprune
