// Checks a packed convolution, lists its taps and runs its tiles.

#include "kernels/packed_convolution.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <utility>

#include "common/clock.hpp"
#include "common/error.hpp"
#include "common/parallel.hpp"

namespace causalprune {

namespace {

const PackedConvolutionKernels& kernels_of(Isa isa) {
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

// Rows that share a list of taps, all of one convolution group.
struct RowGroup {
  std::int64_t first;  // of the outputs
  int rows;
  std::int64_t group;
};

std::vector<RowGroup> row_groups_of(const PackedConvolutionProblem& p, int most_rows) {
  std::vector<RowGroup> found;
  const std::int64_t per_group = static_cast<std::int64_t>(p.outputs.size()) / p.groups;
  for (std::int64_t group = 0; group < p.groups; ++group) {
    for (std::int64_t row = 0; row < per_group;) {
      int rows = most_rows;
      while (rows > per_group - row) rows /= 2;
      found.push_back({group * per_group + row, rows, group});
      row += rows;
    }
  }
  return found;
}

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

std::int64_t tap_offset(const PackedConvolutionProblem& p, std::int64_t channel, std::int64_t ky,
                        std::int64_t kx) {
  return 4 * (channel * p.in.channel_floats() +
              (ky * p.dilation_height - p.padding_height) * p.in.row_floats() +
              (kx * p.dilation_width - p.padding_width) * kPackedLanes);
}

int column_stride_of(std::int64_t stride) {
  return stride == 1 || stride == 2 ? static_cast<int>(stride) : 0;
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

// Lists the taps of one part: row groups of equal size, some of a section's.
class PartBuilder {
 public:
  PartBuilder(const PackedConvolutionProblem& problem, std::int64_t block_channels, bool keep_zeros,
              PackedTapLists& lists)
      : p_(problem), block_channels_(block_channels), keep_zeros_(keep_zeros), lists_(lists) {}

  void add(const RowGroup& g) {
    const auto row = static_cast<std::int32_t>(lists_.channels.size());
    for (int r = 0; r < g.rows; ++r) {
      lists_.channels.push_back(p_.outputs[static_cast<std::size_t>(g.first + r)]);
      lists_.bias.push_back(p_.bias == nullptr ? 0.0f : p_.bias[g.first + r]);
    }
    const std::size_t begin = keyed_.size();
    for (std::int64_t first = 0; first < n_inputs(); first += block_channels_) {
      const PackedSegment segment = segment_of(g, row, first);
      if (segment.n_taps > 0) keyed_.push_back({g.group, first, segment});
    }
    // A row without taps still has a bias.
    if (keyed_.size() == begin) keyed_.push_back({g.group, 0, {row, 0, 0, 0, 0}});
    keyed_[begin].segment.flags |= kFirstSegment;
    keyed_.back().segment.flags |= kLastSegment;
  }

  void finish(int rows) {
    std::stable_sort(keyed_.begin(), keyed_.end(), [](const Keyed& a, const Keyed& b) {
      if (a.group != b.group) return a.group < b.group;
      if (a.block != b.block) return a.block < b.block;
      if (a.segment.flags != b.segment.flags) return a.segment.flags < b.segment.flags;
      return a.segment.n_taps < b.segment.n_taps;
    });
    const auto first = static_cast<std::int64_t>(lists_.segments.size());
    for (const Keyed& each : keyed_) lists_.segments.push_back(each.segment);
    lists_.parts.push_back({first, static_cast<std::int64_t>(lists_.segments.size()), rows});
  }

 private:
  struct Keyed {
    std::int64_t group, block;
    PackedSegment segment;
  };

  std::int64_t n_inputs() const { return static_cast<std::int64_t>(p_.inputs.size()) / p_.groups; }

  PackedSegment segment_of(const RowGroup& g, std::int32_t row, std::int64_t first) {
    const std::int64_t last = std::min(n_inputs(), first + block_channels_);
    const std::int64_t taps = p_.kernel_height * p_.kernel_width, row_size = n_inputs() * taps;
    PackedSegment s{row, 0, static_cast<std::int64_t>(lists_.offsets.size()),
                    static_cast<std::int64_t>(lists_.values.size()), 0};
    // Where zeros are kept, all rows of a convolution group read the same taps.
    const auto known = shared_.find({g.group, first});
    const bool listed = keep_zeros_ && known != shared_.end();
    if (listed) s.offset = known->second;
    if (keep_zeros_ && !listed) shared_[{g.group, first}] = s.offset;
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t channel = p_.inputs[static_cast<std::size_t>(g.group * n_inputs() + i)];
      for (std::int64_t tap = 0; tap < taps; ++tap) {
        const float* w = p_.weight + g.first * row_size + i * taps + tap;
        if (!keep_zeros_ && *w == 0.0f) continue;
        for (int r = 0; r < g.rows; ++r) lists_.values.push_back(w[r * row_size]);
        if (!listed) {
          lists_.offsets.push_back(static_cast<std::int32_t>(
              tap_offset(p_, channel, tap / p_.kernel_width, tap % p_.kernel_width)));
        }
        ++s.n_taps;
      }
    }
    return s;
  }

  const PackedConvolutionProblem& p_;
  const std::int64_t block_channels_;
  const bool keep_zeros_;
  PackedTapLists& lists_;
  std::vector<Keyed> keyed_;
  std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> shared_;
};

PackedTapLists lists_of(const PackedConvolutionProblem& p, const PackedBlocking& blocking,
                        int most_parts) {
  PackedTapLists lists;
  const int most_rows = blocking.rows_per_group;
  const std::vector<RowGroup> all = row_groups_of(p, most_rows);
  for (int rows = most_rows; rows >= 1; rows /= 2) {
    std::vector<RowGroup> section;
    std::copy_if(all.begin(), all.end(), std::back_inserter(section),
                 [&](const RowGroup& g) { return g.rows == rows; });
    const std::size_t n_parts = std::min<std::size_t>(most_parts, section.size());
    for (std::size_t part = 0; part < n_parts; ++part) {
      PartBuilder builder(p, blocking.block_channels, most_rows > 1, lists);
      for (std::size_t k = part; k < section.size(); k += n_parts) builder.add(section[k]);
      builder.finish(rows);
    }
  }
  lists.n_taps = static_cast<std::int64_t>(lists.values.size());
  // The kernels read one tap ahead.
  lists.offsets.push_back(0);
  lists.values.insert(lists.values.end(), 4, 0.0f);
  return lists;
}

// Into how many independent parts the rows are divided: the sums of a part wait in the second-level
// cache between blocks of channels, and every thread has several parts of a tile to take, or one
// would wait for the others.
int parts_of(const PackedConvolutionProblem& p, const PackedBlocking& blocking, std::int64_t tiles,
             int threads) {
  constexpr std::int64_t kSumBytes = 192 << 10;
  const std::int64_t row_bytes = 4 * kPackedLanes * blocking.tile_height * blocking.tile_width;
  const std::int64_t bytes = static_cast<std::int64_t>(p.outputs.size()) * row_bytes;
  const std::int64_t n_inputs = static_cast<std::int64_t>(p.inputs.size()) / p.groups;
  // Sums of all channels at once never wait.
  const std::int64_t cached =
      blocking.block_channels >= n_inputs ? 1 : (bytes + kSumBytes - 1) / kSumBytes;
  const std::int64_t busy = threads < 2 ? 1 : 4 * threads / std::max<std::int64_t>(1, tiles) + 1;
  return static_cast<int>(std::clamp<std::int64_t>(std::max(cached, busy), 1, 64));
}

bool usable(const PackedConvolutionKernels& kernels, const PackedBlocking& b, int column_stride) {
  return kernels.tile(b.rows_per_group, b.tile_height, b.tile_width, column_stride) != nullptr;
}

// The cheapest tiles by estimate, the best first.
std::vector<PackedBlocking> likely_tiles(const PackedConvolutionProblem& p, int rows, Isa isa,
                                         std::size_t most) {
  const PackedConvolutionKernels& kernels = kernels_of(isa);
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
  if (!usable(kernels_of(isa_), blocking_, column_stride_of(p.stride_width))) {
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
  kernels_of(isa_).tile(part.rows_per_group, height, width, column_stride_of(stride_width_))(t);
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
