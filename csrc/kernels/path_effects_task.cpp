#include "kernels/path_effects_task.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace causalprune {

// Whether all of n values are finite; integers, so that the loop runs at the speed of memory.
bool all_finite(const float* data, std::int64_t n, std::int64_t step) {
  constexpr std::uint32_t kExponent = 0x7f800000u;
  std::uint32_t found = 0;
  for (std::int64_t k = 0; k < n; ++k) {
    std::uint32_t bits;
    std::memcpy(&bits, data + k * step, sizeof bits);
    found |= (bits & kExponent) == kExponent ? 1u : 0u;
  }
  return found == 0;
}

bool Task::run(std::int64_t index) {
  const std::int64_t input_part = index % s.input_chunks;
  std::int64_t rest = index / s.input_chunks;
  image_part = rest % s.image_chunks;
  rest /= s.image_chunks;
  block_part = rest % s.block_chunks;
  group = rest / s.block_chunks;
  first_input = input_part * s.input_chunk;
  n_inputs = std::min(s.input_chunk, s.inputs - first_input);
  const std::int64_t end = std::min((block_part + 1) * s.block_chunk, s.blocks);
  for (std::int64_t b = block_part * s.block_chunk; b < end; b += s.blocks_at_once) {
    run_blocks(b, std::min(b + s.blocks_at_once, end));
  }
  return finite;
}

void Task::run_blocks(std::int64_t begin, std::int64_t end) {
  const std::int64_t partial_size = (end - begin) * n_inputs * p.n_statistics * kLanes;
  std::fill_n(w.partial.get(), partial_size, 0.0f);
  std::int64_t unflushed = 0;
  const std::int64_t last = std::min((image_part + 1) * s.image_chunk, p.n_images);
  for (std::int64_t n = image_part * s.image_chunk; n < last; n += s.tile_images) {
    const std::int64_t images = std::min(s.tile_images, last - n);
    std::fill_n(w.unit.get(), images * n_inputs * kLanes, 0.0f);
    for (std::int64_t row = 0; row < p.out_height; row += s.tile_rows) {
      for (std::int64_t column = 0; column < p.out_width; column += s.tile_columns) {
        run_tile(n, images, row, column, begin, end);
      }
    }
    flush_unit(n, images);
    unflushed += images;
    if (unflushed >= s.flush_images || n + images >= last) {
      flush_edges(begin, end);
      unflushed = 0;
    }
  }
}

void Task::run_tile(std::int64_t n, std::int64_t images, std::int64_t row, std::int64_t column,
                    std::int64_t begin, std::int64_t end) {
  const std::int64_t rows = std::min(s.tile_rows, p.out_height - row);
  const std::int64_t columns = std::min(s.tile_columns, p.out_width - column);
  const std::int64_t positions = images * rows * columns;
  const bool in_place = s.pointwise && rows == 1 && p.x_stride[3] == 1 && p.stride_width == 1 &&
                        p.padding_height == 0 && p.padding_width == 0;
  const float* source = nullptr;
  if (in_place) {
    source = p.x + n * p.x_stride[0] + (group * s.inputs + first_input) * p.x_stride[1] +
             row * p.stride_height * p.x_stride[2] + column;
  } else {
    copy_inputs(n, images, row, column, rows, columns);
  }
  if (s.pointwise) {
    list_nonzero(images, rows, columns, source);
    pack_dense(images, rows, columns, source);
  }
  for (std::int64_t b = begin; b < end;) {
    const std::int64_t blocks =
        std::min<std::int64_t>(s.tile_blocks, end - b) == s.tile_blocks ? s.tile_blocks : 1;
    for (std::int64_t k = 0; k < blocks; ++k) {
      gather_block(p.pre, p.pre_stride, w.start.get(), b + k, k, blocks, n, images, row, column,
                   rows, columns);
      if (p.grad != nullptr) {
        gather_block(p.grad, p.grad_stride, w.weighting.get(), b + k, k, blocks, n, images, row,
                     column, rows, columns);
      }
    }
    kernels.prepare(p.activation, positions * blocks, w.start.get(), w.after.get());
    const PathTile tile{positions, w.start.get(), w.after.get(),
                        p.grad != nullptr ? w.weighting.get() : nullptr, p.n_statistics > 1};
    float* partial = w.partial.get() + (b - begin) * n_inputs * p.n_statistics * kLanes;
    if (s.pointwise) {
      run_pointwise(tile, images, b, blocks, partial);
    } else {
      run_taps(tile, b, blocks, row, rows, columns, partial);
    }
    b += blocks;
  }
}

const float* Task::weight_of(std::int64_t block) const {
  return packed_weight + ((group * s.blocks + block) * s.inputs + first_input) * s.taps * kLanes;
}

void Task::run_taps(const PathTile& tile, std::int64_t block, std::int64_t blocks, std::int64_t row,
                    std::int64_t rows, std::int64_t columns, float* partial) {
  PathTapsJob job{};
  job.tile = tile;
  job.blocks = blocks;
  job.rows = rows;
  job.columns = columns;
  job.x = w.x.get();
  job.x_plane = s.x_rows * s.x_pitch;
  job.x_row_step = p.stride_height * s.x_pitch;
  job.x_column_step = p.stride_width;
  job.x_pitch = s.x_pitch;
  job.n_inputs = n_inputs;
  job.n_taps = s.taps;
  job.tap_offset = w.tap_offset.data();
  job.dense_3x3 = is_dense_3x3(p);
  const std::int64_t top = row * p.stride_height - p.padding_height;
  job.zero_rows_above = std::max<std::int64_t>(0, -top);
  job.zero_rows_below = std::max<std::int64_t>(0, top + rows + 2 - p.height);
  job.weight = weight_of(block);
  job.weight_block = s.inputs * s.taps * kLanes;
  job.partial = partial;
  job.unit = w.unit.get();
  kernels.taps(p.activation, job);
}

void Task::run_pointwise(const PathTile& tile, std::int64_t images, std::int64_t block,
                         std::int64_t blocks, float* partial) {
  PathPointwiseJob job{};
  job.tile = tile;
  job.blocks = blocks;
  job.image_positions = tile.n_positions / images;
  job.n_inputs = n_inputs;
  job.list_pitch = list_pitch(s);
  job.position = w.position.get();
  job.value = w.value.get();
  job.count = w.count.get();
  job.negative = w.negative.get();
  job.dense_group_used = w.dense_group_used.get();
  job.dense = w.dense.get();
  job.dense_group = s.tile_positions * kLanes;
  job.weight = weight_of(block);
  job.weight_block = s.inputs * kLanes;
  job.partial = partial;
  job.unit_slot = n_inputs * kLanes;
  job.unit = w.unit.get();
  kernels.pointwise(p.activation, job);
}

void Task::copy_inputs(std::int64_t n, std::int64_t images, std::int64_t row, std::int64_t column,
                       std::int64_t rows, std::int64_t columns) {
  const std::int64_t top = row * p.stride_height - p.padding_height;
  const std::int64_t left = column * p.stride_width - p.padding_width;
  const std::int64_t x_rows =
      (rows - 1) * p.stride_height + s.x_rows - (s.tile_rows - 1) * p.stride_height;
  const std::int64_t x_columns =
      (columns - 1) * p.stride_width + s.x_pitch - (s.tile_columns - 1) * p.stride_width;
  const std::int64_t from = std::clamp<std::int64_t>(-left, 0, x_columns);
  const std::int64_t to = std::clamp<std::int64_t>(p.width - left, from, x_columns);
  const std::int64_t step = p.x_stride[3];
  for (std::int64_t i = 0; i < n_inputs; ++i) {
    const std::int64_t channel = group * s.inputs + first_input + i;
    for (std::int64_t image = 0; image < images; ++image) {
      float* plane = w.x.get() + (i * s.tile_images + image) * s.x_rows * s.x_pitch;
      const float* source = p.x + (n + image) * p.x_stride[0] + channel * p.x_stride[1];
      for (std::int64_t y = 0; y < x_rows; ++y) {
        float* to_row = plane + y * s.x_pitch;
        if (top + y < 0 || top + y >= p.height) {
          std::fill_n(to_row, x_columns, 0.0f);
          continue;
        }
        const float* from_row = source + (top + y) * p.x_stride[2] + (left + from) * step;
        std::fill_n(to_row, from, 0.0f);
        if (step == 1) {
          // Channels are far apart in memory, where no hardware prefetcher follows.
          for (std::int64_t c = 0; c < to - from; c += kLanes) {
            __builtin_prefetch(from_row + 4 * p.x_stride[1] + c);
          }
          finite &= kernels.copy_row(from_row, to - from, to_row + from);
        } else {
          for (std::int64_t c = from; c < to; ++c) to_row[c] = from_row[(c - from) * step];
          finite &= all_finite(to_row + from, to - from, 1);
        }
        std::fill_n(to_row + to, x_columns - to, 0.0f);
      }
    }
  }
}

void Task::list_nonzero(std::int64_t images, std::int64_t rows, std::int64_t columns,
                        const float* source) {
  std::fill_n(w.count.get(), n_inputs, 0);
  std::fill_n(w.negative.get(), input_groups(s), std::uint8_t{0});
  PathListJob job{};
  job.n_inputs = n_inputs;
  job.x_plane = source != nullptr ? p.x_stride[1] : s.tile_images * s.x_rows * s.x_pitch;
  job.n = static_cast<std::int32_t>(p.stride_width == 1 ? columns : 1);
  job.list_pitch = list_pitch(s);
  job.position = w.position.get();
  job.value = w.value.get();
  job.count = w.count.get();
  job.negative = w.negative.get();
  for (std::int64_t image = 0; image < images; ++image) {
    const float* plane = source != nullptr ? source + image * p.x_stride[0]
                                           : w.x.get() + image * s.x_rows * s.x_pitch;
    for (std::int64_t y = 0; y < rows; ++y) {
      for (std::int64_t c = 0; c < columns; c += job.n) {
        job.x = plane + y * p.stride_height * s.x_pitch + c * p.stride_width;
        finite &= kernels.list_nonzero(job);
        job.first_position += job.n;
      }
    }
  }
}

void Task::pack_dense(std::int64_t images, std::int64_t rows, std::int64_t columns,
                      const float* source) {
  const std::int64_t positions = images * rows * columns;
  const std::int64_t plane =
      source != nullptr ? p.x_stride[1] : s.tile_images * s.x_rows * s.x_pitch;
  const double enough = s.dense_from * static_cast<double>(positions * kLanes);
  for (std::int64_t group = 0; group < input_groups(s); ++group) {
    const std::int64_t first = group * kLanes;
    const std::int32_t* count = w.count.get() + first;
    // Strided inputs do not lie in runs.
    w.dense_group_used[group] =
        first + kLanes <= n_inputs && p.stride_width == 1 && p.stride_height == 1 &&
        static_cast<double>(std::accumulate(count, count + kLanes, std::int64_t{0})) >= enough;
    if (!w.dense_group_used[group]) continue;
    float* to = w.dense.get() + group * s.tile_positions * kLanes;
    for (std::int64_t image = 0; image < images; ++image) {
      const float* from = source != nullptr ? source + image * p.x_stride[0]
                                            : w.x.get() + image * s.x_rows * s.x_pitch;
      for (std::int64_t y = 0; y < rows; ++y, to += columns * kLanes) {
        kernels.gather(from + first * plane + y * s.x_pitch, plane, kLanes, columns, to, kLanes);
      }
    }
  }
}

void Task::gather_block(const float* data, const std::int64_t (&stride)[4], float* target,
                        std::int64_t block, std::int64_t k, std::int64_t blocks, std::int64_t n,
                        std::int64_t images, std::int64_t row, std::int64_t column,
                        std::int64_t rows, std::int64_t columns) {
  const std::int64_t lanes = std::min(kLanes, s.outputs - block * kLanes);
  const std::int64_t channel = group * s.outputs + block * kLanes;
  const std::int64_t step = blocks * kLanes;
  // Whole rows that follow each other in memory are one run.
  const bool one_run = columns == p.out_width && stride[2] == columns * stride[3];
  const std::int64_t runs = one_run ? 1 : rows, length = one_run ? rows * columns : columns;
  float* to = target + k * kLanes;
  for (std::int64_t image = 0; image < images; ++image) {
    for (std::int64_t run = 0; run < runs; ++run, to += length * step) {
      const float* from = data + (n + image) * stride[0] + channel * stride[1] +
                          (row + run) * stride[2] + column * stride[3];
      if (stride[3] == 1) {
        finite &= kernels.gather(from, stride[1], static_cast<int>(lanes), length, to, step);
        continue;
      }
      for (std::int64_t c = 0; c < length; ++c) {
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
          to[c * step + lane] = from[c * stride[3] + lane * stride[1]];
        }
        finite &= all_finite(to + c * step, lanes, 1);
        std::fill(to + c * step + lanes, to + c * step + kLanes, 0.0f);
      }
    }
  }
}

void Task::flush_unit(std::int64_t n, std::int64_t images) {
  for (std::int64_t image = 0; image < images; ++image) {
    double* row = unit_partial + (block_part * p.n_images + n + image) * p.n_inputs +
                  group * s.inputs + first_input;
    for (std::int64_t i = 0; i < n_inputs; ++i) {
      const float* lane = w.unit.get() + (image * n_inputs + i) * kLanes;
      double total = 0.0;
      for (std::int64_t k = 0; k < kLanes; ++k) total += lane[k];
      row[i] += total;
    }
  }
}

void Task::flush_edges(std::int64_t begin, std::int64_t end) {
  const std::int64_t block_size = n_inputs * p.n_statistics * kLanes;
  double* edges = edge_partial + image_part * p.n_outputs * s.inputs * p.n_statistics;
  for (std::int64_t b = begin; b < end; ++b) {
    const float* partial = w.partial.get() + (b - begin) * block_size;
    const std::int64_t lanes = std::min(kLanes, s.outputs - b * kLanes);
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      const std::int64_t output = group * s.outputs + b * kLanes + lane;
      double* edge = edges + (output * s.inputs + first_input) * p.n_statistics;
      for (std::int64_t k = 0; k < n_inputs * p.n_statistics; ++k) {
        edge[k] += partial[k * kLanes + lane];
      }
    }
  }
  std::fill_n(w.partial.get(), (end - begin) * block_size, 0.0f);
}

}  // namespace causalprune
