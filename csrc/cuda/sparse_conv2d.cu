// One block computes a tile of output positions for up to 128 output channels. The inputs that the
// tile sees come into shared memory a few channels at a time, the next few while the present ones
// are used. A warp holds R positions a lane of up to eight output channels in registers and takes
// one channel's nonzeros at a time: a nonzero costs one load from shared memory and one FMA for
// each of the R positions, so shared memory's 32 words a clock are what bounds the kernel. Its
// place and value are one broadcast load for two nonzeros, decoded before by one lane each.

#include <algorithm>

#include "common/error.hpp"
#include "cuda/convolution_epilogue.cuh"
#include "cuda/runtime.cuh"
#include "cuda/sparse_conv2d.cuh"
#include "cuda/sparse_tile.cuh"

namespace causalprune {

namespace {

using namespace cuda;

constexpr int kMostWarps = 16;
constexpr int kMostRows = 8 * kMostWarps;
constexpr unsigned kAllLanes = 0xffffffffu;

struct alignas(8) Entry {
  std::uint32_t code;
  float value;
};
struct alignas(8) Tap {
  int byte;  // from the lane's position
  float value;
};
struct alignas(16) TapPair {
  Tap first, second;
};

// What a block keeps beside its input tile.
struct Bookkeeping {
  TapPair taps[kMostWarps][kLanes / 2];
  std::int64_t next[kMostRows], end[kMostRows];  // entries of the block's slots yet to come
  int column_word[kMostTaps];
};

// The chunk of input channels at hand; channels count from the first that the block's rows see.
struct Chunk {
  int first, size;
};

__device__ Entry entry_at(const SparseWeight& w, std::int64_t at, std::int64_t end) {
  // Beyond every channel where there is none.
  if (at >= end) return {~0u, 0.0f};
  const int2 both = reinterpret_cast<const int2*>(w.entries)[at];
  return {static_cast<std::uint32_t>(both.x), __int_as_float(both.y)};
}

template <int R, int RowStep>
__device__ void add_tap(const char* tile, const Tap& tap, int row_step, float (&sum)[R]) {
  const auto* from = reinterpret_cast<const float*>(tile + tap.byte);
#pragma unroll
  for (int r = 0; r < R; ++r) {
    sum[r] = fmaf(tap.value, from[r * (RowStep > 0 ? RowStep : row_step)], sum[r]);
  }
}

// Adds the nonzeros of one row that fall into the chunk. `fetched` is the lane's first entry.
template <int R, int RowStep>
__device__ void add_row(const ConvolutionProblem& p, const SparseTile& t, const SparseWeight& w,
                        Bookkeeping& book, int local, int shift, int chunk_size, const char* tile,
                        Entry fetched, float (&sum)[R]) {
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  std::int64_t at = book.next[local];
  const std::int64_t end = book.end[local];
  TapPair* staged = book.taps[warp];
  for (;;) {
    const int channel = channel_of(fetched.code) + shift;
    const bool inside = at + lane < end && channel < chunk_size;
    const int count = __popc(__ballot_sync(kAllLanes, inside));
    if (inside) {
      const int word = channel * t.plane + tap_row_word(p, t, kernel_row_of(fetched.code)) +
                       book.column_word[kernel_column_of(fetched.code)];
      reinterpret_cast<Tap*>(staged)[lane] = {word * static_cast<int>(sizeof(float)),
                                              fetched.value};
    }
    __syncwarp();
    int k = 0;
#pragma unroll 2
    for (; k + 1 < count; k += 2) {
      const TapPair pair = staged[k / 2];
      add_tap<R, RowStep>(tile, pair.first, t.row_step, sum);
      add_tap<R, RowStep>(tile, pair.second, t.row_step, sum);
    }
    if (k < count) add_tap<R, RowStep>(tile, staged[k / 2].first, t.row_step, sum);
    __syncwarp();  // before the staged taps are overwritten
    at += count;
    if (count < kLanes) break;
    fetched = entry_at(w, at + lane, end);
  }
  if (lane == 0) book.next[local] = at;
  __syncwarp();
}

// Starts the copy of a chunk's channels. Words of the padding are zero from the start.
__device__ void start_copy(const ConvolutionProblem& p, const SparseTile& t,
                           const std::int64_t* source, std::int64_t first_channel, Chunk chunk,
                           float* buffer) {
  for (int word = threadIdx.x; word < t.plane; word += blockDim.x) {
    const std::int64_t from = source[word];
    if (from < 0) continue;
    const float* x = p.x + from + (first_channel + chunk.first) * p.x_stride[1];
    for (int c = 0; c < chunk.size; ++c) {
      copy_async(buffer + c * t.plane + word, x + c * p.x_stride[1], true);
    }
  }
  __pipeline_commit();
}

template <int G, int R>
__device__ void write_sums(const ConvolutionProblem& p, const SparseTile& t, const SparseWeight& w,
                           std::int64_t tile_index, std::int64_t first_slot,
                           const float (&sum)[G][R]) {
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int warps = blockDim.x / kLanes;
  const std::int64_t positions = p.out_height * p.out_width;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const Position at = position_of(p, t, tile_index, lane, r);
    if (at.image < 0) continue;
    const std::int64_t image = at.image * p.n_outputs * positions + at.y * p.out_width + at.x;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const std::int64_t slot = first_slot + g * warps + warp;
      if (slot >= p.n_outputs) continue;
      const std::int64_t channel = w.channel[slot];
      if (channel < 0 || channel >= p.n_outputs) continue;
      const float bias = p.bias == nullptr ? 0.0f : p.bias[channel];
      const std::int64_t to = image + channel * positions;
      p.out[to] = finished(p, sum[g][r], bias, to);
    }
  }
}

// G output channels a warp, R positions a lane; RowStep is that of the tile, or 0 for any.
template <int G, int R, int RowStep>
__global__ void __launch_bounds__(kMostWarps* kLanes, 1)
    sparse_tiles(const ConvolutionProblem p, const SparseTile t, const SparseWeight w,
                 const int chunk_channels, const int row_blocks) {
  extern __shared__ std::int64_t source[];
  __shared__ Bookkeeping book;
  auto* buffers = reinterpret_cast<float*>(source + t.plane);
  const int buffer_words = chunk_channels * t.plane;

  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int warps = blockDim.x / kLanes, rows = G * warps;
  const std::int64_t tile_index = blockIdx.x / row_blocks;
  const std::int64_t first_slot = static_cast<std::int64_t>(blockIdx.x % row_blocks) * rows;
  const std::int64_t outputs = p.n_outputs / p.groups, inputs = p.n_inputs / p.groups;
  const std::int64_t first_group = first_slot / outputs;
  const std::int64_t last_slot = min(first_slot + rows, p.n_outputs) - 1;
  const auto n_channels = static_cast<int>((last_slot / outputs - first_group + 1) * inputs);

  for (int word = threadIdx.x; word < t.plane; word += blockDim.x) {
    source[word] = source_of(p, t, tile_index, word);
    if (source[word] >= 0) continue;
    for (int at = word; at < 2 * buffer_words; at += t.plane) buffers[at] = 0.0f;
  }
  for (int k = threadIdx.x; k < p.kernel_width; k += blockDim.x) {
    book.column_word[k] = t.flat ? 0 : tap_column_word(p, t, k);
  }
  for (int k = threadIdx.x; k < rows; k += blockDim.x) {
    const bool there = first_slot + k < p.n_outputs;
    book.next[k] = there ? max(w.row_start[first_slot + k], std::int64_t{0}) : 0;
    book.end[k] = there ? min(w.row_start[first_slot + k + 1], w.n_entries) : 0;
  }
  __syncthreads();

  float sum[G][R] = {};
  const auto chunk_at = [&](int first) {
    return Chunk{first, min(chunk_channels, n_channels - first)};
  };
  if (n_channels > 0) {
    start_copy(p, t, source, first_group * inputs, chunk_at(0), buffers);
  }
  for (int first = 0, turn = 0; first < n_channels; first += chunk_channels, turn ^= 1) {
    const Chunk chunk = chunk_at(first);
    if (first + chunk_channels < n_channels) {
      start_copy(p, t, source, first_group * inputs, chunk_at(first + chunk_channels),
                 buffers + (turn ^ 1) * buffer_words);
    } else {
      __pipeline_commit();  // an empty batch, so that waiting for all but one fits here too
    }
    Entry fetched = entry_at(w, book.next[warp] + lane, book.end[warp]);
    __pipeline_wait_prior(1);
    __syncthreads();
    const char* tile =
        reinterpret_cast<const char*>(buffers + turn * buffer_words + lane_word(t, lane));
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const int local = g * warps + warp;
      // The next row's entries are under way while this row's are used.
      const Entry next = g + 1 < G
                             ? entry_at(w, book.next[local + warps] + lane, book.end[local + warps])
                             : Entry{~0u, 0.0f};
      const std::int64_t group = min(first_slot + local, last_slot) / outputs;
      const auto shift = static_cast<int>((group - first_group) * inputs) - first;
      add_row<R, RowStep>(p, t, w, book, local, shift, chunk.size, tile, fetched, sum[g]);
      fetched = next;
    }
    __syncthreads();  // before the buffer is filled anew
  }
  write_sums<G, R>(p, t, w, tile_index, first_slot, sum);
}

// One warp an output, for kernels that no tile holds and for few positions; the lanes share the
// row's nonzeros.
__global__ void __launch_bounds__(256)
    sparse_rows(const ConvolutionProblem p, const SparseWeight w) {
  const int lane = threadIdx.x % kLanes;
  const std::int64_t positions = p.out_height * p.out_width;
  const std::int64_t n_warps = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / kLanes);
  const std::int64_t outputs = p.n_outputs / p.groups, inputs = p.n_inputs / p.groups;
  const std::int64_t count = p.n_images * p.n_outputs * positions;
  for (std::int64_t k = (blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x) / kLanes;
       k < count; k += n_warps) {
    const std::int64_t slot = k / positions % p.n_outputs, image = k / positions / p.n_outputs;
    const std::int64_t y = k % positions / p.out_width * p.stride_height - p.padding_height;
    const std::int64_t x = k % p.out_width * p.stride_width - p.padding_width;
    const float* from = p.x + image * p.x_stride[0] + slot / outputs * inputs * p.x_stride[1];
    const std::int64_t end = min(w.row_start[slot + 1], w.n_entries);
    float sum = 0.0f;
    for (std::int64_t at = max(w.row_start[slot], std::int64_t{0}) + lane; at < end; at += kLanes) {
      const Entry entry = entry_at(w, at, end);
      const std::int64_t row = y + kernel_row_of(entry.code) * p.dilation_height;
      const std::int64_t column = x + kernel_column_of(entry.code) * p.dilation_width;
      const bool there = row >= 0 && row < p.height && column >= 0 && column < p.width;
      const float value = there ? from[channel_of(entry.code) * p.x_stride[1] +
                                       row * p.x_stride[2] + column * p.x_stride[3]]
                                : 0.0f;
      sum = fmaf(entry.value, value, sum);
    }
    for (int step = kLanes / 2; step > 0; step /= 2) {
      sum += __shfl_down_sync(kAllLanes, sum, step);
    }
    const std::int64_t channel = w.channel[slot];
    if (lane == 0 && channel >= 0 && channel < p.n_outputs) {
      const std::int64_t to = (image * p.n_outputs + channel) * positions + k % positions;
      p.out[to] = finished(p, sum, p.bias == nullptr ? 0.0f : p.bias[channel], to);
    }
  }
}

using SparseKernel = void (*)(ConvolutionProblem, SparseTile, SparseWeight, int, int);

template <int R>
SparseKernel kernel_of_step(int row_step) {
  switch (row_step) {
    case kRowSteps[0]: return sparse_tiles<8, R, kRowSteps[0]>;
    case kRowSteps[1]: return sparse_tiles<8, R, kRowSteps[1]>;
    default: return sparse_tiles<8, R, 0>;
  }
}

// Two channels a warp are for problems too small to fill the device: any distance will do there.
SparseKernel kernel_of(const SparseLaunch& launch) {
  const SparseTile& tile = launch.tile;
  if (launch.rows_per_warp == 8) {
    if (tile.flat) return sparse_tiles<8, 8, kLanes>;
    return tile.rows == 7 ? kernel_of_step<7>(tile.row_step) : kernel_of_step<8>(tile.row_step);
  }
  if (tile.flat) return sparse_tiles<2, 8, kLanes>;
  return tile.rows == 7 ? sparse_tiles<2, 7, 0> : sparse_tiles<2, 8, 0>;
}

void launch_rows(const ConvolutionProblem& p, const SparseWeight& w, cudaStream_t stream) {
  constexpr std::int64_t kThreads = 256, kMostBlocks = 1 << 16;
  const std::int64_t count = p.n_images * p.n_outputs * p.out_height * p.out_width;
  const std::int64_t blocks = std::min(ceil_div(count, kThreads / kLanes), kMostBlocks);
  sparse_rows<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p, w);
  check(cudaGetLastError(), "sparse_conv2d");
}

void launch_tiles(const ConvolutionProblem& p, const SparseWeight& w, const SparseLaunch& launch,
                  std::int64_t shared_bytes, cudaStream_t stream) {
  constexpr std::int64_t kMostBlocks = (std::int64_t{1} << 31) - 1;
  const std::int64_t blocks = checked_product(launch.tile.n_tiles, launch.row_blocks);
  if (blocks > kMostBlocks) fail("x: expected fewer than 2**31 tiles on CUDA, got ", blocks);
  const SparseKernel kernel = kernel_of(launch);
  // Always the same bound: another thread may launch the same kernel between these two lines.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)),
        "sparse_conv2d: shared memory");
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(launch.warps * kLanes),
           static_cast<std::size_t>(launch.dynamic_bytes), stream>>>(
      p, launch.tile, w, launch.chunk, static_cast<int>(launch.row_blocks));
  check(cudaGetLastError(), "sparse_conv2d");
}

}  // namespace

void sparse_conv2d_cuda(const ConvolutionProblem& p, const SparseWeight& w, int device,
                        void* stream) {
  check_convolution(p);
  if (p.n_outputs % p.groups != 0 || p.n_inputs % p.groups != 0) {
    fail("groups: expected a divisor of ", p.n_inputs, " inputs and ", p.n_outputs,
         " outputs, got ", p.groups);
  }
  if (p.kernel_height > kMostTaps || p.kernel_width > kMostTaps) {
    fail("weight: expected a kernel of at most ", kMostTaps, " x ", kMostTaps, " on CUDA, got ",
         p.kernel_height, " x ", p.kernel_width);
  }
  if (p.n_inputs / p.groups > kMostChannels) {
    fail("weight: expected at most ", kMostChannels, " input channels a group on CUDA, got ",
         p.n_inputs / p.groups);
  }
  if (p.n_images == 0 || p.n_outputs == 0 || p.out_height == 0 || p.out_width == 0) return;
  const DeviceGuard guard(device);
  const auto on = static_cast<cudaStream_t>(stream);
  const std::int64_t shared = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) -
                              static_cast<std::int64_t>(sizeof(Bookkeeping));
  const SparseLaunch launch =
      choose_sparse_launch(p, device_attribute(cudaDevAttrMultiProcessorCount, device), shared);
  constexpr std::int64_t kFewPositions = 8;
  if (launch.chunk == 0 || p.n_images * p.out_height * p.out_width <= kFewPositions) {
    launch_rows(p, w, on);
  } else {
    launch_tiles(p, w, launch, shared, on);
  }
}

}  // namespace causalprune
