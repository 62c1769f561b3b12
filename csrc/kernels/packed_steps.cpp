#include "kernels/packed_steps.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <map>

#include "common/error.hpp"
#include "common/parallel.hpp"

namespace causalprune {

namespace {

const PackedStepKernels& kernels_of(Isa isa) {
  switch (isa) {
#if defined(CAUSALPRUNE_HAS_AVX2)
    case Isa::avx2: return kPackedStepsAvx2;
#endif
#if defined(CAUSALPRUNE_HAS_AVX512)
    case Isa::avx512: return kPackedStepsAvx512;
#endif
#if defined(CAUSALPRUNE_HAS_NEON)
    case Isa::neon: return kPackedStepsNeon;
#endif
    default: return kPackedStepsScalar;
  }
}

void check_plain(const PlainView& plain, const PackedLayout& l, std::int64_t height,
                 std::int64_t width) {
  const std::int64_t expected[4] = {l.n_images, l.n_channels, height, width};
  for (int k = 0; k < 4; ++k) {
    if (plain.size[k] != expected[k]) {
      fail("tensor: expected size ", expected[k], " along dimension ", k, ", got ", plain.size[k]);
    }
  }
}

// What a lane of a block holds.
struct Lane {
  std::int64_t image, row, column;  // first row and column of its strip
};

Lane lane_of(const PackedLayout& l, std::int64_t block, std::int64_t lane) {
  return {block * l.images + lane / (l.rows * l.columns),
          lane / l.columns % l.rows * l.strip_height, lane % l.columns * l.strip_width};
}

std::int64_t floor_div(std::int64_t a, std::int64_t b) {
  return a >= 0 ? a / b : -((b - 1 - a) / b);
}

// Calls body(lines offset of each lane or -1, count of each lane, packed offset, step, n) for all
// blocks of up to sixteen neighbours along the axis that is contiguous outside the layout.
template <class Body>
void for_each_block(const PlainView& plain, const PackedLayout& l, std::int64_t block,
                    std::int64_t channel, bool channels_inside, const Body& body) {
  // Divisions by the lanes once: they would cost more than moving the numbers.
  Lane lanes[kPackedLanes];
  std::int64_t first[kPackedLanes];
  for (std::int64_t lane = 0; lane < kPackedLanes; ++lane) {
    lanes[lane] = lane_of(l, block, lane);
    first[lane] = lanes[lane].image * plain.stride[0] + channel * plain.stride[1] +
                  lanes[lane].row * plain.stride[2] + lanes[lane].column * plain.stride[3];
  }
  const std::int64_t deep = std::min(kPackedLanes, l.n_channels - channel);
  const std::int64_t step = channels_inside ? 1 : kPackedLanes;
  std::int64_t offset[kPackedLanes];
  int count[kPackedLanes];
  for (std::int64_t y = 0; y < l.strip_height; ++y) {
    for (std::int64_t x = 0; x < l.strip_width; x += step) {
      const std::int64_t n = channels_inside ? deep : std::min(kPackedLanes, l.strip_width - x);
      for (int lane = 0; lane < kPackedLanes; ++lane) {
        const Lane& at = lanes[lane];
        const std::int64_t right = l.width - at.column - x;
        const bool inside = at.image < l.n_images && at.row + y < l.height && right > 0;
        count[lane] = inside ? static_cast<int>(channels_inside ? deep : std::min(n, right)) : 0;
        offset[lane] = first[lane] + y * plain.stride[2] + x * plain.stride[3];
      }
      body(offset, count, y, x, static_cast<int>(n));
    }
  }
}

// Lines of sixteen neighbours along the innermost of width and channels; anything else is copied
// number by number.
enum class Inner { width, channels, neither };

Inner inner_of(const PlainView& plain) {
  if (plain.stride[3] == 1 && plain.size[3] > 1) return Inner::width;
  if (plain.stride[1] == 1) return Inner::channels;
  return plain.size[3] == 1 ? Inner::width : Inner::neither;
}

template <class Body>
void for_each_task(const PackedLayout& l, bool channels_inside, int threads, const Body& body) {
  const std::int64_t deep = channels_inside ? kPackedLanes : 1;
  const std::int64_t groups = (l.n_channels + deep - 1) / deep, tasks = l.n_blocks() * groups;
  const int workers = worker_count(threads, tasks, l.floats());
  parallel_for(workers, tasks,
               [&](int, std::int64_t task) { body(task / groups, task % groups * deep); });
}

}  // namespace

bool pack(const PlainView& from, const PackedLayout& l, const PackedView& to, Isa isa,
          int threads) {
  check_plain(from, l, l.height, l.width);
  const PackedStepKernels& kernels = kernels_of(isa);
  const Inner inner = inner_of(from);
  const bool channels_inside = inner == Inner::channels;
  std::atomic<bool> finite{true};
  for_each_task(l, channels_inside, threads, [&](std::int64_t block, std::int64_t channel) {
    float* base = to.data + block * to.block_step + channel * to.channel_step;
    bool all = true;
    for_each_block(
        from, l, block, channel, channels_inside,
        [&](const std::int64_t* offset, const int* count, std::int64_t y, std::int64_t x, int n) {
          LinesIn lines{};
          float gathered[kPackedLanes][kPackedLanes];
          for (std::int64_t lane = 0; lane < kPackedLanes; ++lane) {
            lines.count[lane] = count[lane];
            lines.line[lane] = count[lane] > 0 ? from.data + offset[lane] : from.data;
            if (inner == Inner::neither) {
              for (int k = 0; k < count[lane]; ++k) {
                gathered[lane][k] = from.data[offset[lane] + k * from.stride[3]];
              }
              lines.line[lane] = gathered[lane];
            }
          }
          lines.to = base + y * to.row_step + x * kPackedLanes;
          lines.step = channels_inside ? to.channel_step : kPackedLanes;
          lines.n = n;
          all = kernels.lines_in(lines) && all;
        });
    if (!all) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load();
}

void unpack(const PackedLayout& l, const PackedView& from, const PlainView& to, Isa isa,
            int threads) {
  check_plain(to, l, l.height, l.width);
  const PackedStepKernels& kernels = kernels_of(isa);
  const Inner inner = inner_of(to);
  const bool channels_inside = inner == Inner::channels;
  for_each_task(l, channels_inside, threads, [&](std::int64_t block, std::int64_t channel) {
    const float* base = from.data + block * from.block_step + channel * from.channel_step;
    for_each_block(
        to, l, block, channel, channels_inside,
        [&](const std::int64_t* offset, const int* count, std::int64_t y, std::int64_t x, int n) {
          LinesOut lines{};
          float scattered[kPackedLanes][kPackedLanes];
          for (std::int64_t lane = 0; lane < kPackedLanes; ++lane) {
            lines.count[lane] = count[lane];
            lines.line[lane] = inner == Inner::neither ? scattered[lane] : to.data + offset[lane];
          }
          lines.from = base + y * from.row_step + x * kPackedLanes;
          lines.step = channels_inside ? from.channel_step : kPackedLanes;
          lines.n = n;
          kernels.lines_out(lines);
          if (inner != Inner::neither) return;
          for (std::int64_t lane = 0; lane < kPackedLanes; ++lane) {
            for (int k = 0; k < count[lane]; ++k) {
              to.data[offset[lane] + k * to.stride[3]] = scattered[lane][k];
            }
          }
        });
  });
}

HaloFill::HaloFill(const PackedLayout& l, float outside) : layout_(l), outside_(outside) {
  std::map<HaloTable, std::int32_t> known;
  for (std::int64_t y = -l.top; y < l.strip_height + l.bottom; ++y) {
    for (std::int64_t x = -l.left; x < l.strip_width + l.right; ++x) {
      // Every lane's source is at the same place of a strip so many lanes away.
      const std::int64_t down = floor_div(y, l.strip_height), right = floor_div(x, l.strip_width);
      HaloTable table;
      bool some = false, same = down == 0 && right == 0;
      for (std::int64_t lane = 0; lane < kPackedLanes; ++lane) {
        const Lane at = lane_of(l, 0, lane);
        const std::int64_t row = at.row + y, column = at.column + x;
        const bool inside = row >= 0 && column >= 0 && row < l.height && column < l.width;
        table[static_cast<std::size_t>(lane)] =
            inside ? static_cast<std::int32_t>(lane + down * l.columns + right) : -1;
        some = some || inside;
        same = same && inside;
      }
      if (same) continue;
      const std::int64_t to = y * l.row_floats() + x * kPackedLanes;
      const std::int64_t from =
          (y - down * l.strip_height) * l.row_floats() + (x - right * l.strip_width) * kPackedLanes;
      std::int32_t number = -1;
      if (some) {
        const auto found = known.emplace(table, static_cast<std::int32_t>(tables_.size()));
        if (found.second) tables_.push_back(table);
        number = found.first->second;
      }
      moves_.push_back({to, from, number});
    }
  }
}

void HaloFill::run(const PackedView& view, Isa isa, int threads) const {
  if (moves_.empty()) return;
  const auto n = static_cast<std::int64_t>(moves_.size());
  const std::int64_t tasks = layout_.n_blocks() * layout_.n_channels;
  const int workers = worker_count(threads, tasks, tasks * n * kPackedLanes);
  parallel_for(workers, tasks, [&](int, std::int64_t task) {
    float* channel = view.data + task / layout_.n_channels * view.block_step +
                     task % layout_.n_channels * view.channel_step;
    kernels_of(isa).fill_halo(channel, moves_.data(), n, tables_.data(), outside_);
  });
}

Pool::Pool(const PoolProblem& p) : p_(p) {
  check_layout(p.in, "in");
  check_layout(p.out, "out");
  // A pooling is the depthwise convolution of its window: the same geometry has to hold.
  PackedConvolutionProblem as_convolution{};
  as_convolution.in = p.in, as_convolution.out = p.out;
  as_convolution.kernel_height = p.kernel_height, as_convolution.kernel_width = p.kernel_width;
  as_convolution.stride_height = p.stride_height, as_convolution.stride_width = p.stride_width;
  as_convolution.padding_height = p.padding_height, as_convolution.padding_width = p.padding_width;
  as_convolution.dilation_height = as_convolution.dilation_width = 1;
  check_geometry(as_convolution);
  if (p.in.n_channels != p.out.n_channels) {
    fail("out: expected the ", p.in.n_channels, " channels of in, got ", p.out.n_channels);
  }
  if (!p.average) return;
  const PackedLayout& l = p.out;
  reciprocal_.resize(static_cast<std::size_t>(l.strip_height * l.strip_width * kPackedLanes));
  std::size_t at = 0;
  for (std::int64_t y = 0; y < l.strip_height; ++y) {
    for (std::int64_t x = 0; x < l.strip_width; ++x) {
      for (std::int64_t lane = 0; lane < kPackedLanes; ++lane) {
        const Lane from = lane_of(l, 0, lane);
        const auto seen = [&](std::int64_t first, std::int64_t size, std::int64_t kernel,
                              std::int64_t padding) {
          // Beyond the padding nothing is counted either way.
          const std::int64_t low = p.count_padding ? -padding : 0;
          const std::int64_t high = p.count_padding ? size + padding : size;
          return std::max<std::int64_t>(1, std::min(first + kernel, high) - std::max(first, low));
        };
        const std::int64_t n = seen((from.row + y) * p.stride_height - p.padding_height,
                                    p.in.height, p.kernel_height, p.padding_height) *
                               seen((from.column + x) * p.stride_width - p.padding_width,
                                    p.in.width, p.kernel_width, p.padding_width);
        reciprocal_[at++] = 1.0f / static_cast<float>(n);
      }
    }
  }
}

void Pool::run(const PackedView& in, const PackedView& out, Isa isa, int threads) const {
  const PackedLayout& l = p_.out;
  const std::int64_t tasks = l.n_blocks() * l.n_channels;
  const int workers = worker_count(threads, tasks, l.floats() * p_.kernel_height * p_.kernel_width);
  parallel_for(workers, tasks, [&](int, std::int64_t task) {
    const std::int64_t block = task / l.n_channels, channel = task % l.n_channels;
    const float* from = in.data + block * in.block_step + channel * in.channel_step -
                        p_.padding_height * in.row_step - p_.padding_width * kPackedLanes;
    float* to = out.data + block * out.block_step + channel * out.channel_step;
    for (std::int64_t y = 0; y < l.strip_height; ++y) {
      PoolRow row{};
      row.in = from + y * p_.stride_height * in.row_step;
      row.out = to + y * out.row_step;
      row.in_column_step = p_.stride_width * kPackedLanes;
      row.tap_row_step = in.row_step;
      row.tap_column_step = kPackedLanes;
      row.kernel_height = p_.kernel_height;
      row.kernel_width = p_.kernel_width;
      row.n_positions = l.strip_width;
      row.reciprocal = p_.average ? reciprocal_.data() + y * l.strip_width * kPackedLanes : nullptr;
      kernels_of(isa).pool_row(row);
    }
  });
}

void combine(const CombineProblem& p, const PackedView& a, const PackedView& b,
             const PackedView& out, Isa isa, int threads) {
  const PackedLayout& l = p.layout;
  for (const std::vector<float>* each : {&p.scale, &p.shift}) {
    if (!each->empty() && static_cast<std::int64_t>(each->size()) != l.n_channels) {
      fail("scale, shift: expected one number for each of ", l.n_channels, " channels, got ",
           each->size());
    }
  }
  const std::int64_t tasks = l.n_blocks() * l.n_channels;
  parallel_for(worker_count(threads, tasks, l.floats()), tasks, [&](int, std::int64_t task) {
    const std::int64_t block = task / l.n_channels, channel = task % l.n_channels;
    const auto at = [&](const PackedView& view, std::int64_t y) {
      return view.data + block * view.block_step + channel * view.channel_step + y * view.row_step;
    };
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const bool clamped =
        p.activation == PackedActivation::relu || p.activation == PackedActivation::relu6;
    CombineRow row{};
    row.n_positions = l.strip_width;
    row.scale = p.scale.empty() ? 1.0f : p.scale[static_cast<std::size_t>(channel)];
    row.shift = p.shift.empty() ? 0.0f : p.shift[static_cast<std::size_t>(channel)];
    row.least = clamped ? 0.0f : -kInfinity;
    row.most = p.activation == PackedActivation::relu6 ? 6.0f : kInfinity;
    row.smooth = clamped ? PackedActivation::none : p.activation;
    for (std::int64_t y = 0; y < l.strip_height; ++y) {
      row.a = at(a, y);
      row.b = b.data == nullptr ? nullptr : at(b, y);
      row.out = at(out, y);
      kernels_of(isa).combine_row(row);
    }
  });
}

void global_average(const PackedLayout& l, const PackedView& from, const PlainView& to, Isa isa,
                    int threads) {
  check_plain(to, l, 1, 1);
  const std::int64_t tasks = l.n_blocks() * l.n_channels;
  const float share = 1.0f / static_cast<float>(std::max<std::int64_t>(1, l.height * l.width));
  parallel_for(worker_count(threads, tasks, l.floats()), tasks, [&](int, std::int64_t task) {
    const std::int64_t block = task / l.n_channels, channel = task % l.n_channels;
    const float* base = from.data + block * from.block_step + channel * from.channel_step;
    float sums[kPackedLanes] = {};
    for (std::int64_t y = 0; y < l.strip_height; ++y) {
      kernels_of(isa).add_row(base + y * from.row_step, l.strip_width, sums);
    }
    const std::int64_t strips = l.rows * l.columns;
    for (std::int64_t image = 0; image < l.images; ++image) {
      const std::int64_t n = block * l.images + image;
      if (n >= l.n_images) break;
      float sum = 0.0f;
      for (std::int64_t k = 0; k < strips; ++k) sum += sums[image * strips + k];
      to.data[n * to.stride[0] + channel * to.stride[1]] = sum * share;
    }
  });
}

}  // namespace causalprune
