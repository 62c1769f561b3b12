// One block handles kInputs input channels, a range of output tiles of kOutputs channels, and a
// range of images; its threads are output positions, so reads of pre and grad are coalesced and
// each is used for kInputs edges. float32 within one image, float64 across images and blocks; every
// partial sum has one owner and a second kernel adds them in order: deterministic, no atomics.

#include <cuda_runtime.h>

#include <algorithm>

#include "common/error.hpp"
#include "cuda/device.cuh"
#include "cuda/path_effects.cuh"
#include "cuda/runtime.cuh"

namespace causalprune {

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kInputs = 2;
constexpr int kOutputs = 4;
constexpr int kEdges = kInputs * kOutputs;
constexpr std::int64_t kImageChunks = 8;
constexpr std::int64_t kOutputChunks = 8;
constexpr std::int64_t kSharedFloats = 8192;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

using cuda::check;
using cuda::DeviceGuard;

struct Chunks {
  std::int64_t inputs, outputs;  // per group
  std::int64_t input_tiles, output_tiles;
  std::int64_t image_chunk, image_chunks;
  std::int64_t output_chunk, output_chunks;  // in tiles
};

Chunks chunks_of(std::int64_t n_images, std::int64_t n_inputs, std::int64_t n_outputs,
                 std::int64_t groups) {
  Chunks c{};
  c.inputs = n_inputs / groups;
  c.outputs = n_outputs / groups;
  c.input_tiles = ceil_div(c.inputs, kInputs);
  c.output_tiles = ceil_div(c.outputs, kOutputs);
  c.image_chunk = std::max<std::int64_t>(ceil_div(n_images, kImageChunks), 1);
  c.image_chunks = std::max<std::int64_t>(ceil_div(n_images, c.image_chunk), 1);
  c.output_chunk = std::max<std::int64_t>(ceil_div(c.output_tiles, kOutputChunks), 1);
  c.output_chunks = std::max<std::int64_t>(ceil_div(c.output_tiles, c.output_chunk), 1);
  return c;
}

// ---- activations: phi, and d = change(start - c, after) as on the CPU; NaN stays NaN ----

__device__ float larger(float a, float b) { return !(a <= b) ? a : b; }
__device__ float rectified(float a) { return !(a <= 0.0f) ? a : 0.0f; }

template <Activation A>
__device__ float phi(float x) {
  if constexpr (A == Activation::relu) {
    return rectified(x);
  } else if constexpr (A == Activation::gelu) {
    return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
  } else if constexpr (A == Activation::silu) {
    return x / (1.0f + expf(-x));
  } else if constexpr (A == Activation::hardswish) {
    const float gate = x + 3.0f;
    return x * (gate <= 0.0f ? 0.0f : (gate >= 6.0f ? 6.0f : gate)) * (1.0f / 6.0f);
  } else {
    return x;
  }
}

template <Activation A>
__device__ void prepare(float pre, float& start, float& after) {
  if constexpr (A == Activation::identity) {
    start = after = pre - pre;  // zero, or NaN where pre is not finite
  } else if constexpr (A == Activation::relu) {
    start = !(pre >= 0.0f) ? pre : 0.0f;
    after = -rectified(pre);
  } else {
    start = pre;
    after = phi<A>(pre);
  }
}

template <Activation A>
__device__ float change(float remaining, float after) {
  if constexpr (A == Activation::identity) {
    return remaining;
  } else if constexpr (A == Activation::relu) {
    return larger(remaining, after);
  } else {
    return phi<A>(remaining) - after;
  }
}

// ---- sums over a block ----

// The sum over all threads, in thread 0. `scratch` has kWarps entries.
template <class T>
__device__ T block_sum(T value, T* scratch) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  T total = 0;
  if (threadIdx.x == 0) {
    for (int k = 0; k < kWarps; ++k) total += scratch[k];
  }
  __syncthreads();
  return total;
}

// ---- the kernel ----

struct Tile {
  std::int64_t group, input, n_inputs;  // first input of the tile within its group, and how many
  std::int64_t output, n_outputs;       // likewise
};

// One output position of one image: adds its four statistics to `sums` for every edge of the tile.
template <Activation A>
__device__ void take_position(const PathEffectsProblem& p, const Chunks& c, const Tile& tile,
                              const float* weight, std::int64_t n, std::int64_t position,
                              float (&sums)[kEdges][kEdgeStatistics]) {
  const std::int64_t y = position / p.out_width, x = position % p.out_width;
  float remaining[kInputs][kOutputs], after[kOutputs], weighting[kOutputs];
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) {
    float start = 0.0f;
    after[j] = weighting[j] = 0.0f;
    if (j < tile.n_outputs) {
      const std::int64_t channel = tile.group * c.outputs + tile.output + j;
      prepare<A>(p.pre[n * p.pre_stride[0] + channel * p.pre_stride[1] + y * p.pre_stride[2] +
                       x * p.pre_stride[3]],
                 start, after[j]);
      weighting[j] = p.grad == nullptr ? 1.0f
                                       : p.grad[n * p.grad_stride[0] + channel * p.grad_stride[1] +
                                                y * p.grad_stride[2] + x * p.grad_stride[3]];
    }
#pragma unroll
    for (int i = 0; i < kInputs; ++i) remaining[i][j] = start;
  }
  const std::int64_t taps = p.kernel_height * p.kernel_width;
  const float* image =
      p.x + n * p.x_stride[0] + (tile.group * c.inputs + tile.input) * p.x_stride[1];
  for (std::int64_t tap = 0; tap < taps; ++tap) {
    const std::int64_t in_y =
        y * p.stride_height - p.padding_height + (tap / p.kernel_width) * p.dilation_height;
    const std::int64_t in_x =
        x * p.stride_width - p.padding_width + (tap % p.kernel_width) * p.dilation_width;
    if (in_y < 0 || in_y >= p.height || in_x < 0 || in_x >= p.width) continue;
    const float* value = image + in_y * p.x_stride[2] + in_x * p.x_stride[3];
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
      if (i >= tile.n_inputs) break;
      const float x_value = value[i * p.x_stride[1]];
#pragma unroll
      for (int j = 0; j < kOutputs; ++j) {
        remaining[i][j] = fmaf(-weight[(i * kOutputs + j) * taps + tap], x_value, remaining[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kInputs; ++i) {
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) {
      const float d = change<A>(remaining[i][j], after[j]);
      float (&sum)[kEdgeStatistics] = sums[i * kOutputs + j];
      sum[0] += d;
      sum[1] += fabsf(d);
      sum[2] = fmaf(d, d, sum[2]);
      sum[3] = fmaf(weighting[j], d, sum[3]);
    }
  }
}

template <Activation A>
__global__ void __launch_bounds__(kThreads) accumulate(const PathEffectsProblem p, const Chunks c,
                                                       double* edge_partial, double* unit_partial) {
  extern __shared__ float weight[];  // [kInputs, kOutputs, taps]
  __shared__ double scratch[kWarps];
  const std::int64_t taps = p.kernel_height * p.kernel_width;
  const std::int64_t positions = p.out_height * p.out_width;
  Tile tile{};
  tile.group = blockIdx.x / c.input_tiles;
  tile.input = (blockIdx.x % c.input_tiles) * kInputs;
  tile.n_inputs = min(static_cast<std::int64_t>(kInputs), c.inputs - tile.input);
  const std::int64_t first_image = blockIdx.z * c.image_chunk;
  const std::int64_t end_image = min(first_image + c.image_chunk, p.n_images);
  const std::int64_t end_tile = min((blockIdx.y + 1) * c.output_chunk, c.output_tiles);
  for (std::int64_t t = blockIdx.y * c.output_chunk; t < end_tile; ++t) {
    tile.output = t * kOutputs;
    tile.n_outputs = min(static_cast<std::int64_t>(kOutputs), c.outputs - tile.output);
    __syncthreads();
    for (std::int64_t k = threadIdx.x; k < kEdges * taps; k += kThreads) {
      const std::int64_t i = k / (kOutputs * taps), j = (k / taps) % kOutputs;
      const std::int64_t output = tile.group * c.outputs + tile.output + j;
      weight[k] = i < tile.n_inputs && j < tile.n_outputs
                      ? p.weight[(output * c.inputs + tile.input + i) * taps + k % taps]
                      : 0.0f;
    }
    __syncthreads();
    double totals[kEdges][kEdgeStatistics] = {};
    for (std::int64_t n = first_image; n < end_image; ++n) {
      float sums[kEdges][kEdgeStatistics] = {};
      for (std::int64_t position = threadIdx.x; position < positions; position += kThreads) {
        take_position<A>(p, c, tile, weight, n, position, sums);
      }
#pragma unroll
      for (int edge = 0; edge < kEdges; ++edge) {
#pragma unroll
        for (int k = 0; k < kEdgeStatistics; ++k) totals[edge][k] += sums[edge][k];
      }
#pragma unroll
      for (int i = 0; i < kInputs; ++i) {
        double own = 0.0;
#pragma unroll
        for (int j = 0; j < kOutputs; ++j) own += sums[i * kOutputs + j][3];
        const double total = block_sum(own, scratch);
        if (threadIdx.x == 0 && i < tile.n_inputs) {
          const std::int64_t input = tile.group * c.inputs + tile.input + i;
          unit_partial[(blockIdx.y * p.n_images + n) * p.n_inputs + input] += total;
        }
      }
    }
#pragma unroll
    for (int edge = 0; edge < kEdges; ++edge) {
      const int i = edge / kOutputs, j = edge % kOutputs;
      const std::int64_t output = tile.group * c.outputs + tile.output + j;
#pragma unroll
      for (int k = 0; k < kEdgeStatistics; ++k) {
        const double total = block_sum(totals[edge][k], scratch);
        if (threadIdx.x == 0 && i < tile.n_inputs && j < tile.n_outputs) {
          const std::int64_t at = (output * c.inputs + tile.input + i) * kEdgeStatistics + k;
          edge_partial[blockIdx.z * p.n_outputs * c.inputs * kEdgeStatistics + at] = total;
        }
      }
    }
  }
}

// result[k] = the sum over parts of partial[part, k], in order.
__global__ void add_parts(const double* partial, std::int64_t parts, std::int64_t count,
                          double* result) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t k = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; k < count;
       k += step) {
    double total = 0.0;
    for (std::int64_t part = 0; part < parts; ++part) total += partial[part * count + k];
    result[k] = total;
  }
}

using Accumulate = void (*)(PathEffectsProblem, Chunks, double*, double*);

Accumulate accumulate_of(Activation activation) {
  switch (activation) {
    case Activation::relu: return accumulate<Activation::relu>;
    case Activation::gelu: return accumulate<Activation::gelu>;
    case Activation::silu: return accumulate<Activation::silu>;
    case Activation::hardswish: return accumulate<Activation::hardswish>;
    case Activation::identity: break;
  }
  return accumulate<Activation::identity>;
}

void launch(const PathEffectsProblem& p, const Chunks& c, double* edge_partial,
            double* unit_partial, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.groups * c.input_tiles),
                  static_cast<unsigned>(c.output_chunks), static_cast<unsigned>(c.image_chunks));
  const std::int64_t floats = kEdges * p.kernel_height * p.kernel_width;
  if (floats > kSharedFloats) {
    fail("weight: expected at most ", kSharedFloats / kEdges, " taps on CUDA, got ",
         p.kernel_height * p.kernel_width);
  }
  const std::size_t shared = static_cast<std::size_t>(floats) * sizeof(float);
  const Accumulate kernel = accumulate_of(p.activation);
  kernel<<<grid, kThreads, shared, stream>>>(p, c, edge_partial, unit_partial);
  check(cudaGetLastError(), "path_effects");
}

void add(const double* partial, std::int64_t parts, std::int64_t count, double* result,
         cudaStream_t stream) {
  constexpr std::int64_t kBlock = 256, kMaxBlocks = 4096;
  const auto blocks = static_cast<unsigned>(std::min(ceil_div(count, kBlock), kMaxBlocks));
  add_parts<<<blocks, kBlock, 0, stream>>>(partial, parts, count, result);
  check(cudaGetLastError(), "path_effects: adding up");
}

}  // namespace

CudaStatus cuda_status() {
  CudaStatus status{};
  cudaRuntimeGetVersion(&status.runtime_version);
  const cudaError_t found = cudaGetDeviceCount(&status.device_count);
  if (found != cudaSuccess) {
    status.device_count = 0;
    status.message = cudaGetErrorString(found);
    cudaGetLastError();  // an absent driver is an answer, not an error to leave behind
  }
  return status;
}

std::int64_t path_effects_cuda_workspace(std::int64_t n_images, std::int64_t n_inputs,
                                         std::int64_t n_outputs, std::int64_t groups) {
  if (groups < 1) fail("groups: expected at least 1, got ", groups);
  const Chunks c = chunks_of(n_images, n_inputs, n_outputs, groups);
  const std::int64_t edges = checked_product(n_outputs, c.inputs * kEdgeStatistics);
  return checked_product(c.image_chunks, edges) +
         checked_product(c.output_chunks, checked_product(n_images, n_inputs));
}

void path_effects_cuda(const PathEffectsProblem& p, double* workspace,
                       std::int64_t workspace_doubles, int device, void* stream) {
  check_path_geometry(p);
  if (p.n_statistics != kEdgeStatistics) {
    fail("edge: expected ", kEdgeStatistics, " statistics on CUDA, got ", p.n_statistics);
  }
  const std::int64_t needed =
      path_effects_cuda_workspace(p.n_images, p.n_inputs, p.n_outputs, p.groups);
  if (workspace_doubles < needed) {
    fail("workspace: expected at least ", needed, " doubles, got ", workspace_doubles);
  }
  const DeviceGuard guard(device);
  const auto on = static_cast<cudaStream_t>(stream);
  const Chunks c = chunks_of(p.n_images, p.n_inputs, p.n_outputs, p.groups);
  const std::int64_t n_edge = p.n_outputs * c.inputs * kEdgeStatistics;
  const std::int64_t n_unit = p.n_images * p.n_inputs;
  const auto bytes = [](std::int64_t count) {
    return static_cast<std::size_t>(count) * sizeof(double);
  };
  if (n_unit == 0 || n_edge == 0 || p.out_height == 0 || p.out_width == 0) {
    check(cudaMemsetAsync(p.edge, 0, bytes(n_edge), on), "path_effects");
    check(cudaMemsetAsync(p.unit, 0, bytes(n_unit), on), "path_effects");
    return;
  }
  double* edge_partial = workspace;
  double* unit_partial = workspace + c.image_chunks * n_edge;
  check(cudaMemsetAsync(unit_partial, 0, bytes(c.output_chunks * n_unit), on), "path_effects");
  launch(p, c, edge_partial, unit_partial, on);
  add(edge_partial, c.image_chunks, n_edge, p.edge, on);
  add(unit_partial, c.output_chunks, n_unit, p.unit, on);
}

}  // namespace causalprune
