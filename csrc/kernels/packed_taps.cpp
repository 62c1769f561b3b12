#include "kernels/packed_taps.hpp"

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>

namespace causalprune {

namespace {

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

std::int64_t tap_offset(const PackedConvolutionProblem& p, std::int64_t channel, std::int64_t ky,
                        std::int64_t kx) {
  return 4 * (channel * p.in.channel_floats() +
              (ky * p.dilation_height - p.padding_height) * p.in.row_floats() +
              (kx * p.dilation_width - p.padding_width) * kPackedLanes);
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

}  // namespace

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
