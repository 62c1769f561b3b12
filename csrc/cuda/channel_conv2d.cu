// An implicit matrix product: blocks of rows (listed output channels) by columns (positions) whose
// operands come through shared memory eight inner terms at a time, three stages deep, by
// asynchronous copies; a thread keeps up to 8 x 8 sums in registers. The list of input channels is
// the inner dimension's row pointers. Groups of very few rows, depthwise ones above all, would
// leave such a block empty: there every thread computes one output, and the cache serves the taps.

#include <algorithm>
#include <limits>

#include "common/error.hpp"
#include "cuda/channel_tile.cuh"
#include "cuda/convolution_epilogue.cuh"
#include "cuda/runtime.cuh"

namespace causalprune {

namespace {

using namespace cuda;

constexpr int kInner = 8;  // inner terms of a stage
constexpr int kStages = 3;
constexpr int kTermSlots = 4;
constexpr std::int64_t kNarrowGroup = 4;  // rows of a group that no block is worth

// Rows x Columns of a block, computed by threads of Tall x 8 sums or 4 x 4: a warp is 4 x 8
// threads.
template <int Rows, int Columns, int Tall, int Wide>
struct Blocking {
  static constexpr int kRows = Rows, kColumns = Columns, kTall = Tall, kWide = Wide;
  static constexpr int kWarpRows = 4 * Tall, kWarpColumns = 8 * Wide;
  static constexpr int kWarpsAcross = Columns / kWarpColumns;
  static constexpr int kThreads = Rows / kWarpRows * kWarpsAcross * kLanes;
  static constexpr int kTermStep = kThreads / Columns;  // inner terms that one pass copies
  static_assert(Rows % kWarpRows == 0 && Columns % kWarpColumns == 0, "whole warps");
  static_assert(kThreads % Columns == 0 && kInner % kTermStep == 0, "whole passes");
  static_assert(Tall % 4 == 0 && Wide % 4 == 0, "operands are read four at a time");
};

template <class B>
struct alignas(16) Stages {
  float rows[kStages][kInner][B::kRows];
  float columns[kStages][kInner][B::kColumns];
  InnerTerm terms[kTermSlots][kInner];
};

struct BlockPlace {
  std::int64_t group, first_row, first_column;  // of the block; rows count within the group
  int n_rows, n_inner;                          // of the group; of the product
};

// Starts the copy of kInner rows of the weight, from inner index `first`.
template <class B>
__device__ void copy_rows(const ChannelWeight& w, const BlockPlace& place, int first, bool by_four,
                          float (&to)[kInner][B::kRows]) {
  const float* from = w.weight + place.group * place.n_inner * place.n_rows;
  for (int k = threadIdx.x; k < kInner * B::kRows / 4; k += B::kThreads) {
    const int inner = k / (B::kRows / 4), row = k % (B::kRows / 4) * 4;
    const bool there = first + inner < place.n_inner;
    const std::int64_t at = static_cast<std::int64_t>(first + inner) * place.n_rows;
    const auto left = static_cast<int>(
        min(std::int64_t{4}, max(place.n_rows - place.first_row - row, std::int64_t{0})));
    float* target = &to[inner][row];
    if (by_four) {
      const bool wanted = there && left > 0;  // n_rows is a multiple of four
      __pipeline_memcpy_async(target, wanted ? from + at + place.first_row + row : from, 16,
                              wanted ? 0 : 16);
      continue;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool wanted = there && j < left;
      copy_async(target + j, wanted ? from + at + place.first_row + row + j : from, wanted);
    }
  }
}

// Starts the copy of what kInner terms read at the block's columns.
template <class B>
__device__ void copy_columns(const ConvolutionProblem& p, const InnerTerm (&terms)[kInner],
                             const ColumnStart& start, float (&to)[kInner][B::kColumns]) {
  const int column = threadIdx.x % B::kColumns;
#pragma unroll
  for (int pass = 0; pass < kInner / B::kTermStep; ++pass) {
    const int inner = pass * B::kTermStep + threadIdx.x / B::kColumns;
    const InnerTerm term = terms[inner];
    const bool wanted = inside(p, start, term);
    copy_async(&to[inner][column], wanted ? p.x + start.offset + term.offset : p.x, wanted);
  }
}

// Four neighbours of a row or column of the operands.
__device__ inline void read_four(const float* from, float* to) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}

// A thread's sums: groups of four rows 16 apart, groups of four columns 32 apart.
template <class B>
struct ThreadPlace {
  int row, column;  // first of each, within the block

  __device__ ThreadPlace() {
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    row = warp / B::kWarpsAcross * B::kWarpRows + lane / 8 * 4;
    column = warp % B::kWarpsAcross * B::kWarpColumns + lane % 8 * 4;
  }
  __device__ int row_of(int i) const { return row + i / 4 * 16 + i % 4; }
  __device__ int column_of(int j) const { return column + j / 4 * 32 + j % 4; }
};

template <class B>
__device__ void multiply(const float (&rows)[kInner][B::kRows],
                         const float (&columns)[kInner][B::kColumns], const ThreadPlace<B>& mine,
                         float (&sum)[B::kTall][B::kWide]) {
#pragma unroll
  for (int k = 0; k < kInner; ++k) {
    float a[B::kTall], b[B::kWide];
#pragma unroll
    for (int i = 0; i < B::kTall; i += 4) read_four(&rows[k][mine.row_of(i)], a + i);
#pragma unroll
    for (int j = 0; j < B::kWide; j += 4) read_four(&columns[k][mine.column_of(j)], b + j);
#pragma unroll
    for (int i = 0; i < B::kTall; ++i) {
#pragma unroll
      for (int j = 0; j < B::kWide; ++j) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
  }
}

// Four neighbouring columns of a row, in one piece where they lie in one image and are aligned.
__device__ inline void write_four(const ConvolutionProblem& p, float bias, std::int64_t channel,
                                  std::int64_t column, bool by_four, const float* sum) {
  const std::int64_t positions = p.out_height * p.out_width, count = p.n_images * positions;
  if (by_four) {
    if (column >= count) return;
    const std::int64_t image = column / positions;
    const std::int64_t to = (image * p.n_outputs + channel) * positions + column % positions;
    float4 v = {sum[0] + bias, sum[1] + bias, sum[2] + bias, sum[3] + bias};
    if (p.residual != nullptr) {
      const float4 more = *reinterpret_cast<const float4*>(p.residual + to);
      v = {v.x + more.x, v.y + more.y, v.z + more.z, v.w + more.w};
    }
    *reinterpret_cast<float4*>(p.out + to) = {
        activated(v.x, p.activation), activated(v.y, p.activation), activated(v.z, p.activation),
        activated(v.w, p.activation)};
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (column + j >= count) return;
    const std::int64_t image = (column + j) / positions;
    const std::int64_t to = (image * p.n_outputs + channel) * positions + (column + j) % positions;
    p.out[to] = finished(p, sum[j], bias, to);
  }
}

template <class B>
__global__ void __launch_bounds__(B::kThreads, 512 / B::kThreads)
    listed_product(const ConvolutionProblem p, const ChannelWeight w, const int row_blocks,
                   const bool rows_by_four, const bool columns_by_four) {
  __shared__ Stages<B> stages;
  BlockPlace place{};
  place.first_row = static_cast<std::int64_t>(blockIdx.x % row_blocks) * B::kRows;
  place.group = blockIdx.x / row_blocks % p.groups;
  place.first_column = blockIdx.x / row_blocks / p.groups * B::kColumns;
  place.n_rows = static_cast<int>(w.n_rows / p.groups);
  place.n_inner = static_cast<int>(w.n_columns / p.groups * p.kernel_height * p.kernel_width);
  const int n_stages = (place.n_inner + kInner - 1) / kInner;
  const ColumnStart start =
      column_start(p, place.first_column + static_cast<int>(threadIdx.x % B::kColumns));
  const ThreadPlace<B> mine;

  // Stage t + 2 is copied while stage t is multiplied; its terms were laid down one turn before.
  const auto lay_terms = [&](int stage) {
    if (threadIdx.x < kInner) {
      const std::int64_t k = static_cast<std::int64_t>(stage) * kInner + threadIdx.x;
      stages.terms[stage % kTermSlots][threadIdx.x] =
          inner_term(p, w, place.group, k < place.n_inner ? static_cast<int>(k) : place.n_inner,
                     place.n_inner);
    }
  };
  const auto start_stage = [&](int stage) {
    if (stage < n_stages) {
      copy_rows<B>(w, place, stage * kInner, rows_by_four, stages.rows[stage % kStages]);
      copy_columns<B>(p, stages.terms[stage % kTermSlots], start, stages.columns[stage % kStages]);
    }
    __pipeline_commit();
  };
  for (int stage = 0; stage < kStages; ++stage) lay_terms(stage);
  __syncthreads();
  for (int stage = 0; stage < kStages - 1; ++stage) start_stage(stage);

  float sum[B::kTall][B::kWide] = {};
  for (int stage = 0; stage < n_stages; ++stage) {
    __pipeline_wait_prior(kStages - 2);
    __syncthreads();  // this stage is there for all, and nobody reads the one before
    lay_terms(stage + kStages);
    start_stage(stage + kStages - 1);
    multiply<B>(stages.rows[stage % kStages], stages.columns[stage % kStages], mine, sum);
  }

#pragma unroll
  for (int i = 0; i < B::kTall; ++i) {
    const std::int64_t row = place.first_row + mine.row_of(i);
    if (row >= place.n_rows) continue;
    const std::int64_t listed = place.group * place.n_rows + row, channel = w.outputs[listed];
    if (channel < 0 || channel >= p.n_outputs) continue;
    const float bias = p.bias == nullptr ? 0.0f : p.bias[listed];
#pragma unroll
    for (int j = 0; j < B::kWide; j += 4) {
      write_four(p, bias, channel, place.first_column + mine.column_of(j), columns_by_four,
                 sum[i] + j);
    }
  }
}

// One thread an output.
__global__ void __launch_bounds__(256)
    listed_narrow(const ConvolutionProblem p, const ChannelWeight w) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t positions = p.out_height * p.out_width;
  const auto rows = static_cast<int>(w.n_rows / p.groups);
  const auto columns = static_cast<int>(w.n_columns / p.groups);
  const auto height = static_cast<int>(p.kernel_height), width = static_cast<int>(p.kernel_width);
  const std::int64_t count = p.n_images * w.n_rows * positions;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; k < count;
       k += step) {
    const std::int64_t listed = k / positions % w.n_rows, image = k / positions / w.n_rows;
    const std::int64_t group = listed / rows, channel = w.outputs[listed];
    if (channel < 0 || channel >= p.n_outputs) continue;
    const ColumnStart start = column_start(p, image * positions + k % positions);
    float sum = 0.0f;
    for (int tap = 0; tap < height * width; ++tap) {
      const std::int64_t row = tap / width * p.dilation_height;
      const std::int64_t column = tap % width * p.dilation_width;
      if (!inside(p, start, {0, static_cast<int>(row), static_cast<int>(column)})) continue;
      const float* from = p.x + start.offset + row * p.x_stride[2] + column * p.x_stride[3];
      const float* weight =
          w.weight + (group * height * width + tap) * columns * rows + listed % rows;
      for (int c = 0; c < columns; ++c) {
        const std::int64_t input = w.inputs[group * columns + c];
        if (input < 0 || input >= p.n_inputs) continue;
        sum = fmaf(weight[static_cast<std::int64_t>(c) * rows], from[input * p.x_stride[1]], sum);
      }
    }
    const std::int64_t to = (image * p.n_outputs + channel) * positions + k % positions;
    p.out[to] = finished(p, sum, p.bias == nullptr ? 0.0f : p.bias[listed], to);
  }
}

// The channels that no row writes.
__global__ void __launch_bounds__(256)
    fill_others(const ConvolutionProblem p, const ChannelWeight w) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t positions = p.out_height * p.out_width;
  const std::int64_t count = p.n_images * w.n_others * positions;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; k < count;
       k += step) {
    const std::int64_t channel = w.others[k / positions % w.n_others];
    if (channel < 0 || channel >= p.n_outputs) continue;
    const std::int64_t image = k / positions / w.n_others;
    const std::int64_t to = (image * p.n_outputs + channel) * positions + k % positions;
    p.out[to] = p.residual == nullptr ? 0.0f : activated(p.residual[to], p.activation);
  }
}

unsigned elementwise_blocks(std::int64_t count) {
  constexpr std::int64_t kMostBlocks = 1 << 16;
  return static_cast<unsigned>(std::min(ceil_div(count, 256), kMostBlocks));
}

template <class B>
void launch_product(const ConvolutionProblem& p, const ChannelWeight& w, cudaStream_t stream) {
  constexpr std::int64_t kMostBlocks = (std::int64_t{1} << 31) - 1;
  const std::int64_t positions = p.out_height * p.out_width, rows = w.n_rows / p.groups;
  const std::int64_t row_blocks = ceil_div(rows, B::kRows);
  const std::int64_t blocks = checked_product(ceil_div(p.n_images * positions, B::kColumns),
                                              checked_product(row_blocks, p.groups));
  if (blocks > kMostBlocks) fail("x: expected fewer than 2**31 blocks on CUDA, got ", blocks);
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
  };
  const bool rows_by_four = rows % 4 == 0 && aligned(w.weight);
  const bool columns_by_four = positions % 4 == 0 && aligned(p.out) && aligned(p.residual);
  listed_product<B><<<static_cast<unsigned>(blocks), B::kThreads, 0, stream>>>(
      p, w, static_cast<int>(row_blocks), rows_by_four, columns_by_four);
  check(cudaGetLastError(), "channel_conv2d");
}

using Launch = void (*)(const ConvolutionProblem&, const ChannelWeight&, cudaStream_t);

struct Choice {
  int rows, columns;
  double rate;   // of a busy multiprocessor, to that of the largest block
  int resident;  // blocks on a multiprocessor
  Launch launch;
};

constexpr Choice kChoices[] = {
    {128, 128, 1.0, 2, launch_product<Blocking<128, 128, 8, 8>>},
    {64, 128, 0.95, 4, launch_product<Blocking<64, 128, 8, 8>>},
    {32, 128, 0.8, 4, launch_product<Blocking<32, 128, 4, 8>>},
    {32, 32, 0.5, 8, launch_product<Blocking<32, 32, 4, 4>>},
};

// The least time by a model: blocks come in waves, and a wave that is not full still takes a block.
Launch launch_of(const ConvolutionProblem& p, const ChannelWeight& w, int multiprocessors) {
  const std::int64_t columns = p.n_images * p.out_height * p.out_width;
  const std::int64_t rows = w.n_rows / p.groups;
  double least = std::numeric_limits<double>::infinity();
  Launch chosen = kChoices[0].launch;
  for (const Choice& choice : kChoices) {
    const double blocks = static_cast<double>(ceil_div(rows, choice.rows)) *
                          static_cast<double>(ceil_div(columns, choice.columns)) *
                          static_cast<double>(p.groups);
    // Below one wave a multiprocessor has fewer blocks to share its time among.
    const double waves = std::max(blocks / multiprocessors, 1.0);
    const double time = waves * choice.rows * choice.columns / choice.rate;
    if (time < least) {
      least = time;
      chosen = choice.launch;
    }
  }
  return chosen;
}

void check_lists(const ConvolutionProblem& p, const ChannelWeight& w) {
  if (w.n_rows % p.groups != 0 || w.n_columns % p.groups != 0) {
    fail("groups: expected a divisor of ", w.n_columns, " inputs and ", w.n_rows, " outputs, got ",
         p.groups);
  }
  if (w.n_rows > p.n_outputs || w.n_columns > p.n_inputs) {
    fail("inputs, outputs: expected at most ", p.n_inputs, " and ", p.n_outputs, " channels, got ",
         w.n_columns, " and ", w.n_rows);
  }
  constexpr std::int64_t kMostInner = (std::int64_t{1} << 31) - 64;
  const std::int64_t inner =
      checked_product(w.n_columns / p.groups, p.kernel_height * p.kernel_width);
  if (inner > kMostInner || w.n_rows > kMostInner) {
    fail("weight: expected fewer than 2**31 taps and rows, got ", inner, " and ", w.n_rows);
  }
  checked_product(inner, w.n_rows);
}

}  // namespace

void channel_conv2d_cuda(const ConvolutionProblem& p, const ChannelWeight& w, int device,
                         void* stream) {
  check_convolution(p);
  check_lists(p, w);
  const std::int64_t positions = p.out_height * p.out_width;
  if (p.n_images == 0 || positions == 0) return;
  const DeviceGuard guard(device);
  const auto on = static_cast<cudaStream_t>(stream);
  if (w.n_others > 0) {
    fill_others<<<elementwise_blocks(p.n_images * w.n_others * positions), 256, 0, on>>>(p, w);
    check(cudaGetLastError(), "channel_conv2d: other channels");
  }
  if (w.n_rows == 0) return;
  if (w.n_rows / p.groups <= kNarrowGroup) {
    listed_narrow<<<elementwise_blocks(p.n_images * w.n_rows * positions), 256, 0, on>>>(p, w);
    check(cudaGetLastError(), "channel_conv2d");
    return;
  }
  launch_of(p, w, device_attribute(cudaDevAttrMultiProcessorCount, device))(p, w, on);
}

}  // namespace causalprune
