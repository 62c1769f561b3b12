// Four steps: the range of every column, its codes (one byte a value, columns contiguous), the
// histogram of every column, and a block for every pair. A pair's joint histogram lies in shared
// memory; where it is larger than that, the block takes it a tile of rows at a time and reads the
// codes once for each. Counts and ranges are integers, so the order of atomic operations shows
// nowhere.

#include <algorithm>

#include "common/error.hpp"
#include "cuda/histogram_information.cuh"
#include "cuda/histogram_tile.cuh"
#include "cuda/runtime.cuh"

namespace causalprune {

namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kLanes;
constexpr int kPairMostThreads = 1024;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr std::int64_t kMostBlocks = (std::int64_t{1} << 31) - 1;
constexpr std::int64_t kJointBytes = 128 << 10;  // what every device of compute capability 8.0 has
constexpr std::int64_t kSmallJointBytes = 48 << 10;

// ---- the values of both sides, 32 x 32 at a time ----

struct Loader {
  float tile[kLanes][kLanes + 1];  // [row, column]
};

// Neighbouring lanes read neighbours in memory. Beyond the last row or column nothing is written.
__device__ void load_tile(const HistogramSide& side, std::int64_t first_row,
                          std::int64_t first_column, Loader& to) {
  const bool near_rows = side.row_stride < side.column_stride;
  for (int k = threadIdx.x; k < kLanes * kLanes; k += kThreads) {
    const int row = near_rows ? k % kLanes : k / kLanes;
    const int column = near_rows ? k / kLanes : k % kLanes;
    if (first_row + row >= side.n_rows || first_column + column >= side.n_columns) continue;
    to.tile[row][column] = side.values[(first_row + row) * side.row_stride +
                                       (first_column + column) * side.column_stride];
  }
}

// Block (c, s): 32 columns, and every gridDim.y-th tile of rows.
__global__ void __launch_bounds__(kThreads) find_ranges(const HistogramSide side) {
  __shared__ Loader loader;
  __shared__ unsigned least[kWarps][kLanes], largest[kWarps][kLanes];
  const int column = threadIdx.x % kLanes, part = threadIdx.x / kLanes;
  const std::int64_t first_column = static_cast<std::int64_t>(blockIdx.x) * kLanes;
  unsigned low = ~0u, high = 0u;
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kLanes; first < side.n_rows;
       first += static_cast<std::int64_t>(gridDim.y) * kLanes) {
    load_tile(side, first, first_column, loader);
    __syncthreads();
    if (first_column + column < side.n_columns) {
      for (int row = part; row < kLanes && first + row < side.n_rows; row += kWarps) {
        const unsigned key = key_of(loader.tile[row][column]);
        low = min(low, key);
        high = max(high, key);
      }
    }
    __syncthreads();
  }
  least[part][column] = low;
  largest[part][column] = high;
  __syncthreads();
  if (part != 0 || first_column + column >= side.n_columns) return;
  for (int k = 1; k < kWarps; ++k) {
    low = min(low, least[k][column]);
    high = max(high, largest[k][column]);
  }
  atomicMin(side.least + first_column + column, low);
  atomicMax(side.largest + first_column + column, high);
}

// Block (c, s): 32 columns, and every gridDim.y-th tile of rows. A thread makes one word.
__global__ void __launch_bounds__(kThreads) encode(const HistogramSide side, const int bins) {
  __shared__ Loader loader;
  constexpr int kWords = kLanes / kCodesInWord;
  const int column = threadIdx.x / kWords, word = threadIdx.x % kWords;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kLanes + column;
  const bool there = at < side.n_columns;
  const Binning binning(there ? side.range(at) : ColumnRange{0.0f, 0.0f}, bins);
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kLanes; first < side.n_rows;
       first += static_cast<std::int64_t>(gridDim.y) * kLanes) {
    load_tile(side, first, at - column, loader);
    __syncthreads();
    const std::int64_t to = first / kCodesInWord + word;
    if (there && to < side.words) {
      unsigned codes = 0;
#pragma unroll
      for (int k = 0; k < kCodesInWord; ++k) {
        const int row = word * kCodesInWord + k;
        if (first + row >= side.n_rows) break;
        codes |= binning.code(loader.tile[row][column]) << 8 * k;
      }
      side.codes[at * side.words + to] = codes;
    }
    __syncthreads();
  }
}

// ---- sums over a block ----

// The sum over all threads, in thread 0: lanes, then warps in order. `scratch`: one for each warp.
template <class T>
__device__ T block_sum(T value, T* scratch) {
  for (int step = kLanes / 2; step > 0; step /= 2) {
    value += __shfl_down_sync(kAllLanes, value, step);
  }
  if (threadIdx.x % kLanes == 0) scratch[threadIdx.x / kLanes] = value;
  __syncthreads();
  T total = 0;
  if (threadIdx.x == 0) {
    for (int k = 0; k < static_cast<int>(blockDim.x) / kLanes; ++k) total += scratch[k];
  }
  __syncthreads();
  return total;
}

// ---- the histogram of every column ----

__global__ void __launch_bounds__(kThreads) count_columns(const HistogramSide side) {
  static_assert(kThreads == kMostBins, "a thread for every bin");
  __shared__ unsigned counts[kMostBins];
  __shared__ unsigned long long fullest;
  __shared__ double scratch[kWarps];
  const int bin = threadIdx.x;
  const std::int64_t column = blockIdx.x;
  counts[bin] = 0;
  if (bin == 0) fullest = 0;
  __syncthreads();
  const unsigned* codes = side.codes + column * side.words;
  for (std::int64_t row = bin; row < side.n_rows; row += kThreads) {
    add_one(counts + (codes[row / kCodesInWord] >> 8 * (row % kCodesInWord) & 0xffu));
  }
  __syncthreads();
  // Of equally full bins the lowest.
  atomicMax(&fullest, static_cast<unsigned long long>(counts[bin]) << 32 |
                          static_cast<unsigned>(kMostBins - 1 - bin));
  const double sum = block_sum(count_term(counts[bin]), scratch);
  if (bin != 0) return;
  side.sum[column] = sum;
  side.fullest[column] = kMostBins - 1 - static_cast<unsigned>(fullest);
}

// ---- pairs ----

__global__ void __launch_bounds__(kPairMostThreads)
    count_pairs(const HistogramSide x, const HistogramSide y, const int bins, const int tile_rows,
                double* information) {
  extern __shared__ unsigned cells[];
  __shared__ double sums[kPairMostThreads / kLanes];
  __shared__ unsigned counts[kPairMostThreads / kLanes];
  const std::int64_t column_x = blockIdx.x % x.n_columns, column_y = blockIdx.x / x.n_columns;
  const int thread = threadIdx.x, threads = blockDim.x;
  JointTile tile{};
  tile.bins = bins;
  tile.fullest_x = x.fullest[column_x];
  tile.fullest_y = y.fullest[column_y];
  double sum = 0.0;
  unsigned apart = 0;
  for (int first = 0; first < bins; first += tile_rows) {
    tile.first = first;
    tile.rows = min(tile_rows, bins - first);
    const int n_cells = static_cast<int>(tile.rows) * bins;
    for (int k = thread; k < n_cells; k += threads) cells[k] = 0;
    __syncthreads();
    apart += count_share(tile, x.codes + column_x * x.words, y.codes + column_y * y.words, x.n_rows,
                         thread, threads, cells);
    __syncthreads();
    sum += sum_share(cells, n_cells, thread, threads);
    __syncthreads();
  }
  const unsigned count = block_sum(apart, counts);
  const double joint = block_sum(sum, sums) + count_term(count);
  if (thread == 0) {
    information[blockIdx.x] =
        information_of(static_cast<double>(x.n_rows), joint, x, column_x, y, column_y);
  }
}

// ---- launches ----

void launch_side(const HistogramSide& side, int bins, cudaStream_t stream) {
  constexpr std::int64_t kMostStrips = 256;
  constexpr const char* kWhat = "histogram_information: columns";
  const auto bytes = static_cast<std::size_t>(side.n_columns) * sizeof(unsigned);
  check(cudaMemsetAsync(side.least, 0xff, bytes, stream), kWhat);
  check(cudaMemsetAsync(side.largest, 0, bytes, stream), kWhat);
  const std::int64_t column_tiles = ceil_div(side.n_columns, kLanes);
  const std::int64_t row_tiles = ceil_div(side.n_rows, kLanes);
  const dim3 grid(static_cast<unsigned>(column_tiles),
                  static_cast<unsigned>(std::min(row_tiles, kMostStrips)));
  find_ranges<<<grid, kThreads, 0, stream>>>(side);
  check(cudaGetLastError(), kWhat);
  encode<<<grid, kThreads, 0, stream>>>(side, bins);
  check(cudaGetLastError(), kWhat);
  count_columns<<<static_cast<unsigned>(side.n_columns), kThreads, 0, stream>>>(side);
  check(cudaGetLastError(), kWhat);
}

void launch_pairs(const HistogramPlan& plan, int bins, double* information, int device,
                  cudaStream_t stream) {
  const std::int64_t shared = std::min<std::int64_t>(
      kJointBytes, device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) - (2 << 10));
  const std::int64_t of_row = bins * std::int64_t{sizeof(unsigned)};
  const std::int64_t rows = std::min<std::int64_t>(bins, shared / of_row);
  constexpr const char* kWhat = "histogram_information: pairs";
  // Always the same bound: another thread may launch the same kernel between these two lines.
  check(cudaFuncSetAttribute(count_pairs, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared)),
        kWhat);
  // Where few blocks have a place on a multiprocessor they are of more threads.
  const int threads = rows * of_row > kSmallJointBytes ? kPairMostThreads : kThreads;
  const auto blocks = static_cast<unsigned>(plan.x.n_columns * plan.y.n_columns);
  count_pairs<<<blocks, threads, static_cast<std::size_t>(rows * of_row), stream>>>(
      plan.x, plan.y, bins, static_cast<int>(rows), information);
  check(cudaGetLastError(), kWhat);
}

}  // namespace

std::int64_t histogram_information_cuda_workspace(const HistogramInformationProblem& p) {
  return plan_histogram(p, nullptr).workspace_doubles;
}

void histogram_information_cuda(const HistogramInformationProblem& p, double* workspace,
                                std::int64_t workspace_doubles, int device, void* stream) {
  const HistogramPlan plan = plan_histogram(p, workspace);
  if (workspace_doubles < plan.workspace_doubles) {
    fail("workspace: expected at least ", plan.workspace_doubles, " doubles, got ",
         workspace_doubles);
  }
  if (p.n_x == 0 || p.n_y == 0) return;
  const std::int64_t pairs = checked_product(p.n_x, p.n_y);
  if (pairs > kMostBlocks) fail("x, y: expected fewer than 2**31 pairs on CUDA, got ", pairs);
  const DeviceGuard guard(device);
  const auto on = static_cast<cudaStream_t>(stream);
  launch_side(plan.x, p.bins, on);
  launch_side(plan.y, p.bins, on);
  launch_pairs(plan, p.bins, p.information, device, on);
}

}  // namespace causalprune
