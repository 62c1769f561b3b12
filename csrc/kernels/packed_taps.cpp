#include "kernels/packed_taps.hpp"

#include <algorithm>
#include <iterator>
#include <numeric>

namespace causalprune {

namespace {

// Rows that share a list of taps, all of one convolution group.
struct RowGroup {
  std::vector<std::int64_t> outputs;  // their places in the problem's list
  std::int64_t group;
};

// Rows with weights first, so that those without are not grouped with them.
std::vector<RowGroup> row_groups_of(const PackedConvolutionProblem& p, int most_rows) {
  std::vector<RowGroup> found;
  const std::int64_t per_group = static_cast<std::int64_t>(p.outputs.size()) / p.groups;
  const std::int64_t row_size =
      static_cast<std::int64_t>(p.inputs.size()) / p.groups * p.kernel_height * p.kernel_width;
  std::vector<std::int64_t> order(static_cast<std::size_t>(per_group));
  for (std::int64_t group = 0; group < p.groups; ++group) {
    std::iota(order.begin(), order.end(), group * per_group);
    std::stable_partition(order.begin(), order.end(), [&](std::int64_t output) {
      const float* row = p.weight + output * row_size;
      return std::any_of(row, row + row_size, [](float w) { return w != 0.0f; });
    });
    for (auto next = order.begin(); next != order.end();) {
      int rows = most_rows;
      while (rows > order.end() - next) rows /= 2;
      found.push_back({{next, next + rows}, group});
      next += rows;
    }
  }
  return found;
}

std::int64_t tap_offset(const PackedConvolutionProblem& p, std::int64_t channel, std::int64_t ky,
                        std::int64_t kx) {
  return 4 * (channel * p.in.channel_floats() +
              (ky * p.dilation_height - p.padding_height) * p.in.row_floats() +
              (kx * p.dilation_width - p.padding_width) * kPackedLanes);
}

// Lists the taps of one part: row groups of equal size, some of a section's.
class PartBuilder {
 public:
  PartBuilder(const PackedConvolutionProblem& problem, std::int64_t block_channels,
              PackedTapLists& lists)
      : p_(problem), block_channels_(block_channels), lists_(lists) {}

  void add(const RowGroup& g) {
    const auto row = static_cast<std::int32_t>(lists_.channels.size());
    for (const std::int64_t output : g.outputs) {
      lists_.channels.push_back(p_.outputs[static_cast<std::size_t>(output)]);
      lists_.bias.push_back(p_.bias == nullptr ? 0.0f : p_.bias[output]);
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

  // A tap is listed where any of the rows has a weight.
  PackedSegment segment_of(const RowGroup& g, std::int32_t row, std::int64_t first) {
    const std::int64_t last = std::min(n_inputs(), first + block_channels_);
    const std::int64_t taps = p_.kernel_height * p_.kernel_width, row_size = n_inputs() * taps;
    PackedSegment s{row, 0, static_cast<std::int64_t>(lists_.offsets.size()),
                    static_cast<std::int64_t>(lists_.values.size()), 0};
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t channel = p_.inputs[static_cast<std::size_t>(g.group * n_inputs() + i)];
      for (std::int64_t tap = 0; tap < taps; ++tap) {
        const float* w = p_.weight + i * taps + tap;
        const auto weighs = [&](std::int64_t output) { return w[output * row_size] != 0.0f; };
        if (std::none_of(g.outputs.begin(), g.outputs.end(), weighs)) continue;
        for (const std::int64_t output : g.outputs) lists_.values.push_back(w[output * row_size]);
        lists_.offsets.push_back(static_cast<std::int32_t>(
            tap_offset(p_, channel, tap / p_.kernel_width, tap % p_.kernel_width)));
        ++s.n_taps;
      }
    }
    return s;
  }

  const PackedConvolutionProblem& p_;
  const std::int64_t block_channels_;
  PackedTapLists& lists_;
  std::vector<Keyed> keyed_;
};

}  // namespace

PackedTapLists lists_of(const PackedConvolutionProblem& p, const PackedBlocking& blocking,
                        int most_parts) {
  PackedTapLists lists;
  const int most_rows = blocking.rows_per_group;
  const std::vector<RowGroup> all = row_groups_of(p, most_rows);
  for (int rows = most_rows; rows >= 1; rows /= 2) {
    std::vector<RowGroup> section;
    std::copy_if(all.begin(), all.end(), std::back_inserter(section),
                 [&](const RowGroup& g) { return static_cast<int>(g.outputs.size()) == rows; });
    const std::size_t n_parts = std::min<std::size_t>(most_parts, section.size());
    for (std::size_t part = 0; part < n_parts; ++part) {
      PartBuilder builder(p, blocking.block_channels, lists);
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

}  // namespace causalprune
