// A stretch of a network in the packed layout: steps over buffers, made once, run for every batch.
//
// Buffers that are not needed at the same time share memory. A slice is some channels of another
// buffer, so that a concatenation is nothing but producers that write into slices. A program is
// constant after finish(); concurrent runs on different workspaces are independent.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/packed_convolution.hpp"
#include "kernels/packed_layout.hpp"
#include "kernels/packed_steps.hpp"

namespace causalprune {

class PackedProgram {
 public:
  explicit PackedProgram(Isa isa) : isa_(isa) {}
  PackedProgram(const PackedProgram&) = delete;  // its steps refer to it
  PackedProgram& operator=(const PackedProgram&) = delete;

  int buffer(const PackedLayout& layout);
  int slice(int buffer, std::int64_t first_channel, std::int64_t n_channels);

  // Arguments are numbered: pack reads inputs[argument], the others write outputs[argument].
  void pack(int argument, int to);
  void unpack(int from, int argument);
  void global_average(int from, int argument);
  void convolve(std::shared_ptr<const PackedConvolution> plan, int from, int to, int residual);
  void fill_halo(int buffer, float outside);
  void pool(const PoolProblem& problem, int from, int to);
  // activation(scale * (a + b) + shift); b may be -1, scale and shift empty.
  void combine(int a, int b, int to, std::vector<float> scale, std::vector<float> shift,
               PackedActivation activation);

  // Gives every buffer its memory. No step may be added behind it.
  void finish();

  const PackedLayout& layout(int buffer) const;
  std::int64_t workspace_floats() const { return workspace_floats_; }

  // Returns whether everything that was packed is finite. With `stop_at_nonfinite` nothing behind
  // the first pack that is not is run. Throws std::invalid_argument for tensors that do not fit, a
  // workspace that is too small or not aligned to 64 bytes.
  bool run(const std::vector<PlainView>& inputs, const std::vector<PlainView>& outputs,
           float* workspace, std::int64_t workspace_floats, bool stop_at_nonfinite,
           int threads) const;

 private:
  struct Buffer {
    PackedLayout layout;
    int parent;  // itself for a buffer of its own
    std::int64_t first_channel;
    std::int64_t offset = 0;  // of the memory, in floats
    int first_step = -1, last_step = -1;
  };
  struct Context {
    const std::vector<PlainView>& inputs;
    const std::vector<PlainView>& outputs;
    float* workspace;
    int threads;
  };
  using Step = std::function<bool(const Context&)>;

  void add(Step step, std::initializer_list<int> buffers);
  void check_buffer(const char* name, int buffer) const;
  const Buffer& at(int buffer) const { return buffers_[static_cast<std::size_t>(buffer)]; }
  PackedView view(const Context& context, int buffer) const;

  Isa isa_;
  bool finished_ = false;
  std::int64_t workspace_floats_ = 0;
  std::vector<Buffer> buffers_;
  std::vector<Step> steps_;
};

}  // namespace causalprune
