#include "kernels/packed_program.hpp"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "common/error.hpp"

namespace causalprune {

namespace {

const PlainView& argument_of(const std::vector<PlainView>& arguments, int number,
                             const char* name) {
  if (number < 0 || number >= static_cast<int>(arguments.size())) {
    fail(name, ": expected at least ", number + 1, " tensors, got ", arguments.size());
  }
  return arguments[static_cast<std::size_t>(number)];
}

bool same_memory(const PackedLayout& a, const PackedLayout& b) {
  return a.same_strips(b) && a.top == b.top && a.bottom == b.bottom && a.left == b.left &&
         a.right == b.right;
}

}  // namespace

int PackedProgram::buffer(const PackedLayout& layout) {
  check_layout(layout, "layout");
  const int number = static_cast<int>(buffers_.size());
  buffers_.push_back({layout, number, 0});
  return number;
}

int PackedProgram::slice(int buffer, std::int64_t first_channel, std::int64_t n_channels) {
  check_buffer("buffer", buffer);
  const Buffer whole = at(buffer);
  if (first_channel < 0 || n_channels < 0 || first_channel + n_channels > whole.layout.n_channels) {
    fail("slice: expected channels in [0, ", whole.layout.n_channels, "), got ", n_channels,
         " from ", first_channel);
  }
  Buffer part = whole;
  part.layout.n_channels = n_channels;
  part.first_channel = whole.first_channel + first_channel;
  buffers_.push_back(part);
  return static_cast<int>(buffers_.size()) - 1;
}

const PackedLayout& PackedProgram::layout(int buffer) const {
  check_buffer("buffer", buffer);
  return at(buffer).layout;
}

void PackedProgram::check_buffer(const char* name, int buffer) const {
  if (buffer < 0 || buffer >= static_cast<int>(buffers_.size())) {
    fail(name, ": expected a buffer in [0, ", buffers_.size(), "), got ", buffer);
  }
}

void PackedProgram::add(Step step, std::initializer_list<int> buffers) {
  if (finished_) fail("program: expected steps before finish(), got one behind it");
  const int now = static_cast<int>(steps_.size());
  for (const int buffer : buffers) {
    if (buffer < 0) continue;
    Buffer& memory = buffers_[static_cast<std::size_t>(at(buffer).parent)];
    if (memory.first_step < 0) memory.first_step = now;
    memory.last_step = now;
  }
  steps_.push_back(std::move(step));
}

PackedView PackedProgram::view(const Context& context, int buffer) const {
  const Buffer& part = at(buffer);
  const Buffer& whole = at(part.parent);
  PackedView v = view_of(whole.layout, context.workspace + whole.offset);
  v.data += part.first_channel * v.channel_step;
  return v;
}

void PackedProgram::pack(int argument, int to) {
  check_buffer("to", to);
  add(
      [this, argument, to](const Context& c) {
        return causalprune::pack(argument_of(c.inputs, argument, "inputs"), at(to).layout,
                                 view(c, to), isa_, c.threads);
      },
      {to});
}

void PackedProgram::unpack(int from, int argument) {
  check_buffer("from", from);
  add(
      [this, from, argument](const Context& c) {
        causalprune::unpack(at(from).layout, view(c, from),
                            argument_of(c.outputs, argument, "outputs"), isa_, c.threads);
        return true;
      },
      {from});
}

void PackedProgram::global_average(int from, int argument) {
  check_buffer("from", from);
  add(
      [this, from, argument](const Context& c) {
        causalprune::global_average(at(from).layout, view(c, from),
                                    argument_of(c.outputs, argument, "outputs"), isa_, c.threads);
        return true;
      },
      {from});
}

void PackedProgram::convolve(std::shared_ptr<const PackedConvolution> plan, int from, int to,
                             int residual) {
  check_buffer("from", from);
  check_buffer("to", to);
  if (!same_memory(plan->in(), at(from).layout) ||
      plan->in().n_channels != at(from).layout.n_channels ||
      !same_memory(plan->out(), at(to).layout) ||
      plan->out().n_channels != at(to).layout.n_channels) {
    fail("plan: expected the layouts of its buffers");
  }
  if (residual >= 0) {
    check_buffer("residual", residual);
    if (!at(residual).layout.same_strips(at(to).layout) ||
        at(residual).layout.n_channels != at(to).layout.n_channels) {
      fail("residual: expected the strips and channels of the output");
    }
  }
  if (at(from).parent == at(to).parent) fail("to: expected another buffer than from");
  add(
      [this, plan = std::move(plan), from, to, residual](const Context& c) {
        plan->run(view(c, from), view(c, to), residual < 0 ? PackedView{} : view(c, residual),
                  c.threads);
        return true;
      },
      {from, to, residual});
}

void PackedProgram::fill_halo(int buffer, float outside) {
  check_buffer("buffer", buffer);
  auto fill = std::make_shared<const HaloFill>(at(buffer).layout, outside);
  add(
      [this, fill, buffer](const Context& c) {
        fill->run(view(c, buffer), isa_, c.threads);
        return true;
      },
      {buffer});
}

void PackedProgram::pool(const PoolProblem& problem, int from, int to) {
  check_buffer("from", from);
  check_buffer("to", to);
  PoolProblem p = problem;
  p.in = at(from).layout, p.out = at(to).layout;
  auto made = std::make_shared<const Pool>(p);
  add(
      [this, made, from, to](const Context& c) {
        made->run(view(c, from), view(c, to), isa_, c.threads);
        return true;
      },
      {from, to});
}

void PackedProgram::combine(int a, int b, int to, std::vector<float> scale,
                            std::vector<float> shift, PackedActivation activation) {
  check_buffer("a", a);
  check_buffer("to", to);
  for (const int each : {a, b}) {
    if (each < 0) continue;
    check_buffer("b", each);
    if (!at(each).layout.same_strips(at(to).layout) ||
        at(each).layout.n_channels != at(to).layout.n_channels) {
      fail("a, b: expected the strips and channels of the output");
    }
  }
  auto problem = std::make_shared<const CombineProblem>(
      CombineProblem{at(to).layout, activation, std::move(scale), std::move(shift)});
  add(
      [this, problem, a, b, to](const Context& c) {
        causalprune::combine(*problem, view(c, a), b < 0 ? PackedView{} : view(c, b), view(c, to),
                             isa_, c.threads);
        return true;
      },
      {a, b, to});
}

void PackedProgram::finish() {
  if (finished_) fail("program: finish() was called before");
  finished_ = true;
  std::vector<int> order;
  for (int k = 0; k < static_cast<int>(buffers_.size()); ++k) {
    if (at(k).parent == k && at(k).first_step >= 0) order.push_back(k);
  }
  std::stable_sort(order.begin(), order.end(),
                   [this](int a, int b) { return at(a).layout.floats() > at(b).layout.floats(); });
  // The largest first, each at the lowest place that is free while it is needed.
  std::vector<int> placed;
  for (const int k : order) {
    Buffer& mine = buffers_[static_cast<std::size_t>(k)];
    std::vector<std::pair<std::int64_t, std::int64_t>> taken;
    for (const int other : placed) {
      const Buffer& o = at(other);
      if (o.last_step < mine.first_step || mine.last_step < o.first_step) continue;
      taken.emplace_back(o.offset, o.offset + o.layout.floats());
    }
    std::sort(taken.begin(), taken.end());
    std::int64_t offset = 0;
    for (const auto& [first, last] : taken) {
      if (offset + mine.layout.floats() <= first) break;
      offset = std::max(offset, last);
    }
    mine.offset = offset;
    workspace_floats_ = std::max(workspace_floats_, offset + mine.layout.floats());
    placed.push_back(k);
  }
}

bool PackedProgram::run(const std::vector<PlainView>& inputs, const std::vector<PlainView>& outputs,
                        float* workspace, std::int64_t workspace_floats, bool stop_at_nonfinite,
                        int threads) const {
  if (!finished_) fail("program: expected finish() before a run");
  if (workspace_floats < workspace_floats_) {
    fail("workspace: expected at least ", workspace_floats_, " floats, got ", workspace_floats);
  }
  if (reinterpret_cast<std::uintptr_t>(workspace) % 64 != 0) {
    fail("workspace: expected memory aligned to 64 bytes");
  }
  const Context context{inputs, outputs, workspace, threads};
  bool finite = true;
  for (const Step& step : steps_) {
    finite = step(context) && finite;
    if (!finite && stop_at_nonfinite) break;
  }
  return finite;
}

}  // namespace causalprune
