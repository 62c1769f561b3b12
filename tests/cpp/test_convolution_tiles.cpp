// Where the CUDA convolutions put their inputs and find them again, without a GPU: over drawn
// shapes, every output position has one owner, every tap of it is where the kernel will look, and a
// warp's loads meet no bank of shared memory twice. The exit status tells whether all of it held.

#include <cstdint>
#include <cstdio>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/channel_tile.cuh"
#include "cuda/sparse_tile.cuh"

namespace {

using namespace causalprune;
using namespace causalprune::cuda;

int failed = 0, passed = 0;

void check(bool holds, const std::string& what) {
  if (!holds) std::printf("FAIL  %s\n", what.c_str());
  ++(holds ? passed : failed);
}

std::int64_t one_of(std::mt19937& draw, std::int64_t least, std::int64_t most) {
  return std::uniform_int_distribution<std::int64_t>(least, most)(draw);
}

ConvolutionProblem drawn(std::mt19937& draw) {
  ConvolutionProblem p{};
  const bool point = one_of(draw, 0, 3) == 0;
  do {
    p.height = one_of(draw, 1, 34), p.width = one_of(draw, 1, 34);
    p.kernel_height = point ? 1 : one_of(draw, 1, 5);
    p.kernel_width = point ? 1 : one_of(draw, 1, 5);
    p.stride_height = one_of(draw, 1, 4), p.stride_width = one_of(draw, 1, 4);
    p.padding_height = one_of(draw, 0, 2), p.padding_width = one_of(draw, 0, 2);
    p.dilation_height = one_of(draw, 1, 3), p.dilation_width = one_of(draw, 1, 3);
    p.out_height = p.height + 2 * p.padding_height - p.dilation_height * (p.kernel_height - 1) - 1;
    p.out_width = p.width + 2 * p.padding_width - p.dilation_width * (p.kernel_width - 1) - 1;
  } while (p.out_height < 0 || p.out_width < 0);
  p.out_height = p.out_height / p.stride_height + 1;
  p.out_width = p.out_width / p.stride_width + 1;
  p.n_images = one_of(draw, 1, 5), p.groups = one_of(draw, 1, 3);
  p.n_inputs = p.groups * one_of(draw, 1, 40), p.n_outputs = p.groups * one_of(draw, 1, 200);
  p.x_stride[3] = 1, p.x_stride[2] = p.width + one_of(draw, 0, 2);
  p.x_stride[1] = p.x_stride[2] * p.height, p.x_stride[0] = p.x_stride[1] * p.n_inputs;
  check_convolution(p);
  return p;
}

// The element of channel 0 that a tap reads, or below zero where it reads the padding.
std::int64_t read_by(const ConvolutionProblem& p, const Position& at, std::int64_t ky,
                     std::int64_t kx) {
  const std::int64_t row = at.y * p.stride_height - p.padding_height + ky * p.dilation_height;
  const std::int64_t column = at.x * p.stride_width - p.padding_width + kx * p.dilation_width;
  if (row < 0 || row >= p.height || column < 0 || column >= p.width) return -1;
  return at.image * p.x_stride[0] + row * p.x_stride[2] + column * p.x_stride[3];
}

void check_sparse(const ConvolutionProblem& p, const std::string& name) {
  const SparseLaunch launch = choose_sparse_launch(p, 132, 200 << 10);
  const SparseTile& t = launch.tile;
  check(launch.chunk >= 1 && launch.dynamic_bytes <= 200 << 10, name + ": fits shared memory");
  check(launch.row_blocks * launch.rows_per_warp * launch.warps >= p.n_outputs,
        name + ": all output channels");
  std::set<std::tuple<std::int64_t, int, int>> owned;
  bool placed = true, once = true;
  for (std::int64_t tile = 0; tile < t.n_tiles; ++tile) {
    std::vector<std::int64_t> source(static_cast<std::size_t>(t.plane));
    for (int word = 0; word < t.plane; ++word) {
      source[static_cast<std::size_t>(word)] = source_of(p, t, tile, word);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int r = 0; r < t.rows; ++r) {
        const Position at = position_of(p, t, tile, lane, r);
        if (at.image < 0) continue;
        once &= owned.insert({at.image, at.y, at.x}).second;
        for (int ky = 0; ky < p.kernel_height; ++ky) {
          for (int kx = 0; kx < p.kernel_width; ++kx) {
            const int word = lane_word(t, lane) + r * t.row_step +
                             (t.flat ? 0 : tap_row_word(p, t, ky) + tap_column_word(p, t, kx));
            placed &=
                word < t.plane && source[static_cast<std::size_t>(word)] == read_by(p, at, ky, kx);
          }
        }
      }
    }
  }
  check(placed, name + ": every tap where the kernel looks");
  check(once && static_cast<std::int64_t>(owned.size()) == p.n_images * p.out_height * p.out_width,
        name + ": every position once");
  std::set<int> banks;
  for (int lane = 0; lane < kLanes; ++lane) banks.insert(lane_word(t, lane) % kLanes);
  check(banks.size() == kLanes, name + ": no bank twice");
}

void check_listed(const ConvolutionProblem& p, const std::string& name, std::mt19937& draw) {
  std::vector<std::int64_t> inputs(static_cast<std::size_t>(p.n_inputs));
  for (std::int64_t& input : inputs) input = one_of(draw, 0, p.n_inputs - 1);
  inputs[0] = -1;  // is not read
  ChannelWeight w{};
  w.n_columns = p.n_inputs;
  w.inputs = inputs.data();
  const auto columns = static_cast<int>(p.n_inputs / p.groups);
  const int n_inner = columns * static_cast<int>(p.kernel_height * p.kernel_width);
  bool placed = true;
  for (int draws = 0; draws < 500; ++draws) {
    const std::int64_t group = one_of(draw, 0, p.groups - 1);
    const auto k = static_cast<int>(one_of(draw, 0, n_inner + 3));
    const std::int64_t position = one_of(draw, 0, p.n_images * p.out_height * p.out_width + 3);
    const InnerTerm term = inner_term(p, w, group, k, n_inner);
    const ColumnStart start = column_start(p, position);
    const Position at = flat_position(p, position);
    std::int64_t expected = -1;
    if (k < n_inner && at.image >= 0) {
      const std::int64_t tap = k / columns;
      const std::int64_t input = inputs[static_cast<std::size_t>(group * columns + k % columns)];
      const std::int64_t first = read_by(p, at, tap / p.kernel_width, tap % p.kernel_width);
      if (first >= 0 && input >= 0) expected = first + input * p.x_stride[1];
    }
    const bool read = inside(p, start, term);
    placed &= read == (expected >= 0) && (!read || start.offset + term.offset == expected);
  }
  check(placed, name + ": every term reads its element");
}

}  // namespace

int main() {
  std::mt19937 draw(std::random_device{}());
  for (int k = 0; k < 60; ++k) {
    const ConvolutionProblem p = drawn(draw);
    std::string name;
    for (const std::int64_t size :
         {p.n_images, p.height, p.width, p.kernel_height, p.kernel_width, p.stride_height,
          p.stride_width, p.padding_height, p.padding_width, p.dilation_height, p.dilation_width}) {
      name += std::to_string(size) + ' ';
    }
    check_sparse(p, name);
    check_listed(p, name, draw);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
