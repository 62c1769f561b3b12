// Checks a channel_update problem, packs its weight and runs its rows.

#include "kernels/channel_update.hpp"

#include <algorithm>

#include "common/aligned_array.hpp"
#include "common/error.hpp"
#include "common/parallel.hpp"

namespace causalprune {

namespace {

constexpr std::int64_t kLanes = 16;

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
  const std::int64_t lanes = (p.n_outputs + kLanes - 1) / kLanes * kLanes;
  const std::int64_t n_tasks = checked_product(p.n_rows, p.out_height);
  if (n_tasks == 0 || p.out_width == 0 || p.n_outputs == 0) return;
  const AlignedArray<float> packed = pack_weight(p, lanes);
  const ChannelUpdateKernels& kernels = kernels_of(isa);
  const std::int64_t taps = p.kernel_height * p.kernel_width;
  const std::int64_t work = checked_product(checked_product(n_tasks, p.out_width * lanes),
                                            std::max<std::int64_t>(1, p.n_changed * taps));
  parallel_for(worker_count(threads, n_tasks, work), n_tasks, [&](int, std::int64_t task) {
    const std::int64_t image = task / p.out_height, y = task % p.out_height;
    const std::int64_t top = y * p.stride_height - p.padding_height;
    ChannelUpdateRow row{};
    row.n_positions = p.out_width;
    row.n_outputs = p.n_outputs;
    row.n_changed = p.n_changed;
    row.kernel_width = p.kernel_width;
    row.plain = p.plain + image * p.plain_stride[0] + y * p.plain_stride[2];
    row.plain_step = p.plain_stride[3];
    row.out = p.out + image * p.out_stride[0] + y * p.out_stride[2];
    row.out_step = p.out_stride[3];
    row.first_row = top < 0 ? (-top + p.dilation_height - 1) / p.dilation_height : 0;
    row.last_row = p.kernel_height;
    while (row.last_row > row.first_row &&
           top + (row.last_row - 1) * p.dilation_height >= p.height) {
      --row.last_row;
    }
    row.difference = p.difference + image * p.difference_stride[0] +
                     (top + row.first_row * p.dilation_height) * p.difference_stride[2];
    row.channel_step = p.difference_stride[1];
    row.row_step = p.dilation_height * p.difference_stride[2];
    row.column_step = p.difference_stride[3];
    row.width = p.width;
    row.padding = p.padding_width;
    row.stride = p.stride_width;
    row.dilation = p.dilation_width;
    row.weight = packed.get();
    row.kernel_height = p.kernel_height;
    row.lanes = lanes;
    row.relu = p.relu;
    kernels.row(row);
  });
}

}  // namespace causalprune
