// Checks a packed convolution and runs its tiles.

#include "kernels/packed_convolution.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <string>

#include "common/clock.hpp"
#include "common/error.hpp"
#include "common/parallel.hpp"
#include "kernels/packed_blocking.hpp"
#include "kernels/packed_taps.hpp"

namespace causalprune {

namespace {

constexpr const char* kActivationNames[] = {"none", "relu", "relu6", "hardswish", "silu", "gelu"};

// One axis of the geometry: what a strip reads has to lie in the strip and its halo.
struct Axis {
  const char* name;
  std::int64_t size, out_size, strip, out_strip, strips, before, after;
  std::int64_t kernel, stride, padding, dilation;
};

void check_axis(const Axis& a) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  if (a.kernel < 1 || a.kernel > kLimit)
    fail("weight: expected a kernel of at least 1, got ", a.kernel);
  if (a.stride < 1 || a.stride > kLimit) fail("stride: expected at least 1, got ", a.stride);
  if (a.padding < 0 || a.padding > kLimit) fail("padding: expected at least 0, got ", a.padding);
  if (a.dilation < 1 || a.dilation > kLimit)
    fail("dilation: expected at least 1, got ", a.dilation);
  if (a.kernel * a.dilation > kLimit) fail("dilation: expected a smaller one, got ", a.dilation);
  const std::int64_t room = a.size + 2 * a.padding - (a.dilation * (a.kernel - 1) + 1);
  const std::int64_t expected = room < 0 ? 0 : room / a.stride + 1;
  if (expected != a.out_size) fail("out: expected ", a.name, " ", expected, ", got ", a.out_size);
  if (a.strips > 1 && a.strip != a.stride * a.out_strip) {
    fail("out: expected strips of ", a.name, " ", a.strip, " / stride ", a.stride, ", got ",
         a.out_strip);
  }
  const std::int64_t reach =
      (a.out_strip - 1) * a.stride - a.padding + (a.kernel - 1) * a.dilation - (a.strip - 1);
  if (a.before < a.padding || a.after < reach) {
    fail("in: expected a halo of ", a.padding, " and ", std::max<std::int64_t>(0, reach),
         " along its ", a.name, ", got ", a.before, " and ", a.after);
  }
}

void check_channels(const char* name, const std::vector<std::int32_t>& channels,
                    std::int64_t n_channels) {
  if (channels.empty()) fail(name, ": expected at least one channel, got none");
  std::vector<bool> seen(static_cast<std::size_t>(n_channels), false);
  for (const std::int32_t channel : channels) {
    if (channel < 0 || channel >= n_channels) {
      fail(name, ": expected channels in [0, ", n_channels, "), got ", channel);
    }
    if (seen[static_cast<std::size_t>(channel)]) {
      fail(name, ": expected every channel once, got ", channel, " twice");
    }
    seen[static_cast<std::size_t>(channel)] = true;
  }
}

void check(const PackedConvolutionProblem& p) {
  check_layout(p.in, "in");
  check_layout(p.out, "out");
  check_channels("inputs", p.inputs, p.in.n_channels);
  check_channels("outputs", p.outputs, p.out.n_channels);
  const auto n_inputs = static_cast<std::int64_t>(p.inputs.size());
  const auto n_outputs = static_cast<std::int64_t>(p.outputs.size());
  if (p.groups < 1 || n_inputs % p.groups != 0 || n_outputs % p.groups != 0) {
    fail("groups: expected a divisor of ", n_inputs, " inputs and ", n_outputs, " outputs, got ",
         p.groups);
  }
  check_geometry(p);
}

}  // namespace

PackedActivation packed_activation_by_name(const char* name) {
  std::string known;
  for (std::size_t k = 0; k < std::size(kActivationNames); ++k) {
    if (std::string(name) == kActivationNames[k]) return static_cast<PackedActivation>(k);
    known += (k > 0 ? ", " : "") + std::string(kActivationNames[k]);
  }
  fail("activation: expected one of ", known, ", got '", name, "'");
}

void check_geometry(const PackedConvolutionProblem& p) {
  if (p.in.n_images != p.out.n_images || p.in.images != p.out.images || p.in.rows != p.out.rows ||
      p.in.columns != p.out.columns) {
    fail("out: expected the images and lanes of in");
  }
  check_axis({"height", p.in.height, p.out.height, p.in.strip_height, p.out.strip_height, p.in.rows,
              p.in.top, p.in.bottom, p.kernel_height, p.stride_height, p.padding_height,
              p.dilation_height});
  check_axis({"width", p.in.width, p.out.width, p.in.strip_width, p.out.strip_width, p.in.columns,
              p.in.left, p.in.right, p.kernel_width, p.stride_width, p.padding_width,
              p.dilation_width});
}

PackedConvolution::PackedConvolution(const PackedConvolutionProblem& p,
                                     const PackedBlocking& wanted, Isa isa, int threads)
    : in_(p.in),
      out_(p.out),
      stride_height_(p.stride_height),
      stride_width_(p.stride_width),
      activation_(p.activation),
      isa_(isa) {
  check(p);
  blocking_ = wanted.rows_per_group > 0 && wanted.tile_height > 0 && wanted.tile_width > 0 &&
                      wanted.block_channels > 0
                  ? wanted
                  : timed_blocking(p, wanted);
  if (!usable(packed_kernels_of(isa_), blocking_, column_stride_of(p.stride_width))) {
    fail("blocking: expected a tile that this instruction set has, got ", blocking_.rows_per_group,
         " rows of ", blocking_.tile_height, " x ", blocking_.tile_width);
  }
  lists_ = lists_of(p, blocking_, parts_of(p, blocking_, out_.n_blocks() * n_tiles(), threads));
}

PackedBlocking PackedConvolution::timed_blocking(const PackedConvolutionProblem& p,
                                                 const PackedBlocking& wanted) {
  // Less than this is noise beside what else a call costs.
  constexpr double kEnoughSeconds = 2e-4;
  const std::int64_t in_floats = in_.block_floats(), out_floats = out_.block_floats();
  const AlignedArray<float> in = aligned_array<float>(in_floats);
  const AlignedArray<float> out = aligned_array<float>(out_floats);
  std::fill_n(in.get(), in_floats, 0.0f);
  std::fill_n(out.get(), out_floats, 0.0f);
  PackedBlocking best{};
  double least = std::numeric_limits<double>::infinity();
  for (const int rows : {1, 2, 4}) {
    if (wanted.rows_per_group > 0 && rows != wanted.rows_per_group) continue;
    for (PackedBlocking candidate : likely_tiles(p, rows, isa_, 4)) {
      for (const std::int64_t channels : likely_blocks(p, candidate)) {
        candidate.block_channels = channels;
        blocking_ = candidate;
        lists_ = lists_of(p, candidate, parts_of(p, candidate, 1, 1));
        double fastest = std::numeric_limits<double>::infinity(), spent = 0.0;
        for (int run = 0; run < 20 && (run < 2 || spent < kEnoughSeconds); ++run) {
          const double begin = thread_seconds();
          run_block(view_of(in_, in.get()), view_of(out_, out.get()), {nullptr, 0, 0, 0}, 0);
          const double took = thread_seconds() - begin;
          fastest = std::min(fastest, took);
          spent += took;
          if (took > 3.0 * least) break;
        }
        if (fastest < least) least = fastest, best = candidate;
      }
    }
  }
  if (best.rows_per_group == 0) fail("out: expected strips of at least one position");
  return best;
}

std::int64_t PackedConvolution::n_tiles() const {
  return ((out_.strip_height + blocking_.tile_height - 1) / blocking_.tile_height) *
         ((out_.strip_width + blocking_.tile_width - 1) / blocking_.tile_width);
}

std::int64_t PackedConvolution::bytes() const {
  return static_cast<std::int64_t>(lists_.segments.size() * sizeof(PackedSegment) +
                                   lists_.offsets.size() * 4 + lists_.values.size() * 4 +
                                   lists_.channels.size() * 4 + lists_.bias.size() * 4);
}

void PackedConvolution::run_tile(const PackedView& in, const PackedView& out,
                                 const PackedView& residual, std::int64_t block, std::int64_t tile,
                                 const PackedTapLists::Part& part) const {
  const std::int64_t across = (out_.strip_width + blocking_.tile_width - 1) / blocking_.tile_width;
  const std::int64_t y = tile / across * blocking_.tile_height;
  const std::int64_t x = tile % across * blocking_.tile_width;
  const auto height =
      static_cast<int>(std::min<std::int64_t>(blocking_.tile_height, out_.strip_height - y));
  const auto width =
      static_cast<int>(std::min<std::int64_t>(blocking_.tile_width, out_.strip_width - x));
  PackedTile t{};
  t.in = in.data + block * in.block_step + y * stride_height_ * in.row_step +
         x * stride_width_ * kPackedLanes;
  t.out = out.data + block * out.block_step + y * out.row_step + x * kPackedLanes;
  if (residual.data != nullptr) {
    t.residual =
        residual.data + block * residual.block_step + y * residual.row_step + x * kPackedLanes;
  }
  t.in_row_bytes = 4 * stride_height_ * in.row_step;
  t.in_column_bytes = 4 * stride_width_ * kPackedLanes;
  t.out_row_floats = out.row_step;
  t.out_channel_floats = out.channel_step;
  t.residual_row_floats = residual.row_step;
  t.residual_channel_floats = residual.channel_step;
  t.first = lists_.segments.data() + part.first;
  t.last = lists_.segments.data() + part.last;
  t.offsets = lists_.offsets.data();
  t.values = lists_.values.data();
  t.channels = lists_.channels.data();
  t.bias = lists_.bias.data();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const bool clamped =
      activation_ == PackedActivation::relu || activation_ == PackedActivation::relu6;
  t.least = clamped ? 0.0f : -kInfinity;
  t.most = activation_ == PackedActivation::relu6 ? 6.0f : kInfinity;
  t.has_end = clamped || residual.data != nullptr;
  t.smooth = clamped ? PackedActivation::none : activation_;
  packed_kernels_of(isa_).tile(part.rows_per_group, height, width,
                               column_stride_of(stride_width_))(t);
}

void PackedConvolution::run_block(const PackedView& in, const PackedView& out,
                                  const PackedView& residual, std::int64_t block) const {
  for (std::int64_t tile = 0; tile < n_tiles(); ++tile) {
    for (const PackedTapLists::Part& part : lists_.parts) {
      run_tile(in, out, residual, block, tile, part);
    }
  }
}

void PackedConvolution::run(const PackedView& in, const PackedView& out, const PackedView& residual,
                            int threads) const {
  if (in.row_step != in_.row_floats() || in.channel_step != in_.channel_floats()) {
    fail("in: expected a view in the layout that the convolution was made for");
  }
  const std::int64_t n_parts = static_cast<std::int64_t>(lists_.parts.size());
  const std::int64_t per_block = n_tiles() * n_parts, tasks = out_.n_blocks() * per_block;
  const std::int64_t positions = out_.strip_height * out_.strip_width * kPackedLanes;
  const std::int64_t taps = n_taps();
  const int workers = worker_count(threads, tasks, out_.n_blocks() * positions * (taps + 1));
  parallel_for(workers, tasks, [&](int, std::int64_t task) {
    const std::int64_t rest = task % per_block;
    run_tile(in, out, residual, task / per_block, rest / n_parts,
             lists_.parts[static_cast<std::size_t>(rest % n_parts)]);
  });
}

}  // namespace causalprune
