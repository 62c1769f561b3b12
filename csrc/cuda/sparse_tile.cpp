// Which tile, and how many output channels a warp and a block take.

#include "cuda/sparse_tile.cuh"

#include <algorithm>

namespace causalprune::cuda {

namespace {

// More channels at a time mean fewer barriers; more blocks on a multiprocessor hide more of them.
constexpr std::int64_t kTargetBytes = 72 << 10;
constexpr std::int64_t kMostChunk = 64;

SparseTile best_patch_tile(const ConvolutionProblem& p, int rows) {
  const SparseTile tile = patch_tile(p, rows, 0);
  const std::int64_t step = p.stride_height * p.stride_width;
  for (const int wanted : kRowSteps) {
    // A little room in every row for a distance known to the compiler.
    if (tile.row_step <= wanted && wanted <= tile.row_step + 4 && wanted % step == 0) {
      return patch_tile(p, rows, wanted);
    }
  }
  return tile;
}

}  // namespace

SparseLaunch choose_sparse_launch(const ConvolutionProblem& p, std::int64_t multiprocessors,
                                  std::int64_t shared_bytes) {
  SparseLaunch launch{};
  if (pointwise(p)) {
    launch.tile = flat_tile(p, 8);
  } else {
    // Seven rows suit maps of 7, 14, 28 and 56, eight those of 8, 16 and 32.
    const auto computed = [&](std::int64_t rows) { return ceil_div(p.out_height, rows) * rows; };
    launch.tile = best_patch_tile(p, computed(7) < computed(8) ? 7 : 8);
  }
  if (launch.tile.plane == 0) return launch;
  const SparseTile& tile = launch.tile;

  struct Choice {
    int rows_per_warp, warps;
  };
  constexpr Choice kChoices[] = {{8, 16}, {8, 8}, {2, 8}};
  for (const Choice& choice : kChoices) {
    launch.rows_per_warp = choice.rows_per_warp;
    launch.warps = choice.warps;
    const std::int64_t rows = choice.rows_per_warp * choice.warps;
    launch.row_blocks = ceil_div(p.n_outputs, rows);
    const std::int64_t blocks = tile.n_tiles * launch.row_blocks;
    const bool fills_blocks = launch.row_blocks * rows * 3 <= p.n_outputs * 4;
    if (fills_blocks && blocks * choice.warps >= multiprocessors * 16) break;
  }

  // The channels of the groups that a block's rows see.
  const std::int64_t rows = launch.rows_per_warp * launch.warps;
  const std::int64_t per_group = std::max<std::int64_t>(p.n_outputs / p.groups, 1);
  const std::int64_t seen = std::max<std::int64_t>(
      std::min(p.groups, ceil_div(rows - 1, per_group) + 1) * (p.n_inputs / p.groups), 1);
  const std::int64_t fixed = tile.plane * std::int64_t{sizeof(std::int64_t)};
  const std::int64_t of_channel = 2 * tile.plane * std::int64_t{sizeof(float)};
  const std::int64_t target =
      std::min(shared_bytes, launch.warps > 8 ? 2 * kTargetBytes : kTargetBytes);
  std::int64_t chunk = std::max<std::int64_t>((target - fixed) / of_channel, 1);
  chunk = std::min({chunk, kMostChunk, seen});
  chunk = ceil_div(seen, ceil_div(seen, chunk));  // all of about the same size
  launch.dynamic_bytes = fixed + chunk * of_channel;
  launch.chunk = launch.dynamic_bytes <= shared_bytes ? static_cast<int>(chunk) : 0;
  return launch;
}

}  // namespace causalprune::cuda
