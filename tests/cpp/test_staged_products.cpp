// What the threads of channel_update's and relative_sensitivity's CUDA kernels compute, run on the
// host, against double precision: every blocking, several batches, both parts, every epilogue.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "checks.hpp"
#include "common/aligned_array.hpp"
#include "cuda/channel_update_tile.cuh"
#include "cuda/sensitivity_tile.cuh"
#include "relative_sensitivity_cases.hpp"
#include "staged_host.hpp"

namespace {

using namespace causalprune::cuda;

// ---- relative_sensitivity ---------------------------------------------------------------------

template <int Across>
void run_part(const SensitivityPart& part, std::mt19937& draw) {
  run_staged<Denominators<Across>>(part, draw);
  if (part.aggregate == Aggregate::max || part.positions == 1) {
    run_staged<Shares<Across, true>>(part, draw);
  } else {
    run_staged<Shares<Across, false>>(part, draw);
  }
}

template <int Across>
std::vector<float> sensitivities(const Inputs& in, Aggregate aggregate, std::int64_t batch_floats,
                                 std::int64_t image_chunk, std::mt19937& draw) {
  std::vector<float> found(in.weight.size(), 0.0f);
  const SensitivityProblem p = in.problem(aggregate, found.data());
  SensitivityPlan plan = plan_sensitivity(p, batch_floats);
  if (plan.batch == 0) return found;
  const auto workspace = causalprune::aligned_array<float>(plan.workspace_floats);
  std::fill_n(workspace.get(), plan.workspace_floats, std::nanf(""));
  SensitivityPart& part = plan.part;
  place_workspace(part, workspace.get());
  *part.negative = 0;
  part.image_chunk = image_chunk;
  for (part.first_image = 0; part.first_image < p.n_images; part.first_image += plan.batch) {
    part.n_images = std::min(plan.batch, p.n_images - part.first_image);
    for (const bool of_negative : {false, true}) {
      part.of_negative = of_negative;
      run_part<Across>(part, draw);
    }
  }
  return found;
}

// Some more than one block of each blocking wide, more than a run of positions long.
const Layer kWideLayers[] = {
    {"130 outputs, 1x1", 3, 70, 2, 3, 130, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1, Values::signed_},
    {"300 weights a filter", 2, 34, 5, 5, 18, {3, 3}, {1, 1}, {1, 1}},
    {"long image", 1, 3, 23, 19, 5, {3, 2}, {1, 1}, {1, 1}, {1, 1}, 1, Values::signed_, true},
};

template <int Across>
void check_sensitivity(const Layer& layer, unsigned seed, std::mt19937& draw) {
  const Inputs inputs(layer, seed);
  for (const Aggregate aggregate : kAggregates) {
    const std::vector<double> want = oracle(inputs, aggregate);
    const std::string name =
        std::string(layer.name) + ", " + name_of(aggregate) + ", across " + std::to_string(Across);
    const std::vector<float> got = sensitivities<Across>(inputs, aggregate, 1 << 20, 2, draw);
    const double worst = worst_error(got, want);
    check(worst <= 3e-5, name + ", off by " + std::to_string(worst));
    check(sensitivities<Across>(inputs, aggregate, 1, 1, draw) == got,
          name + ": the same bits image by image");
  }
}

void check_sensitivities(std::mt19937& draw) {
  const auto of_every_blocking = [&](const Layer& layer) {
    check_sensitivity<1>(layer, draw(), draw);
    check_sensitivity<2>(layer, draw(), draw);
    check_sensitivity<4>(layer, draw(), draw);
  };
  for (const Layer& layer : kLayers) of_every_blocking(layer);
  for (const Layer& layer : kWideLayers) of_every_blocking(layer);
}

// Nothing is refused on the device: what is not finite must show, and nowhere else.
void check_non_finite(std::mt19937& draw) {
  const Layer layer = {"", 2, 4, 6, 7, 6, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 2, Values::signed_};
  const std::int64_t of_filter = layer.weights();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto holds = [&](const Inputs& inputs, const auto& broken) {
    bool right = true;
    for (const Aggregate aggregate : kAggregates) {
      const std::vector<float> got = sensitivities<1>(inputs, aggregate, 1 << 20, 1, draw);
      for (std::size_t k = 0; k < got.size(); ++k) right &= std::isnan(got[k]) == broken(k);
    }
    return right;
  };
  for (const float value : {std::nanf(""), kInfinity, -kInfinity}) {
    const std::string name = std::to_string(value);
    Inputs of_x(layer, draw());
    of_x.x[3 * 6 * 7 + 20] = value;  // channel 3: of the second group
    check(holds(of_x, [&](std::size_t k) { return k >= 3 * static_cast<std::size_t>(of_filter); }),
          name + " in x: the filters that read it");
    Inputs of_weight(layer, draw());
    const auto place = static_cast<std::size_t>(of_filter + 4);
    of_weight.weight[place] = value;
    check(holds(of_weight,
                [&](std::size_t k) {
                  const bool filter = static_cast<std::int64_t>(k) / of_filter == 1;
                  const bool sign = (of_weight.weight[k] < 0.0f) == (value < 0.0f);
                  return filter && (std::isnan(value) || sign);
                }),
          name + " in weight: its filter and sign");
  }
  Inputs large(layer, draw());
  const auto place = static_cast<std::size_t>(of_filter + 4);
  large.weight[place] = 3e38f;
  large.x[20] = 9.0f;
  check(holds(large,
              [&](std::size_t k) {
                return static_cast<std::int64_t>(k) / of_filter == 1 && large.weight[k] >= 0.0f;
              }),
        "a sum beyond float32: its filter and sign");
}

void check_refused() {
  const Layer layer = {"refused", 2, 4, 6, 7, 6, {3, 3}, {1, 1}, {1, 1}};
  const auto with = [&](const std::function<void(SensitivityProblem&)>& change) {
    return [&layer, change] {
      const Inputs inputs(layer, 7);
      SensitivityProblem p = inputs.problem(Aggregate::max, nullptr);
      change(p);
      plan_sensitivity(p, 1 << 20);
    };
  };
  constexpr std::int64_t kHuge = std::int64_t{1} << 62;
  refused(with([](auto& p) { p.groups = 5; }), "groups");
  refused(with([](auto& p) { p.stride_width = 0; }), "stride");
  refused(with([](auto& p) { p.n_images = kHuge; }), "64 bits");
  refused(with([](auto& p) { p.padding_height = std::int64_t{1} << 30; }), "2**30");
}

// ---- channel_update ---------------------------------------------------------------------------

struct Update {
  std::int64_t rows, changed, height, width, outputs;
  std::int64_t kernel[2] = {3, 3}, stride[2] = {1, 1}, padding[2] = {1, 1}, dilation[2] = {1, 1};
  bool channels_last = false;  // of the difference

  std::int64_t out(int axis) const {
    const std::int64_t size = axis == 0 ? height : width;
    return (size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) / stride[axis] + 1;
  }
};

const Update kUpdates[] = {
    {3, 1, 9, 7, 17},
    {2, 2, 8, 9, 64},
    {2, 1, 33, 20, 16},
    {1, 5, 13, 7, 30},
    {2, 3, 11, 13, 97, {5, 2}, {2, 1}, {2, 0}, {1, 3}},
    {3, 21, 6, 5, 68, {1, 1}, {1, 1}, {0, 0}, {1, 1}, true},
    {2, 0, 4, 5, 20},
    {2, 1, 2, 2, 1, {3, 3}, {1, 1}, {5, 4}},
};

// Drawn values, an element of padding behind every position, and the result in double.
class DrawnUpdate {
 public:
  DrawnUpdate(const Update& given, std::mt19937& draw)
      : u(given),
        pitch(u.outputs + (draw() % 2 == 0 ? 4 : 1)),
        positions(u.rows * u.out(0) * u.out(1)),
        plain(causalprune::aligned_array<float>(positions * pitch)),
        residual(causalprune::aligned_array<float>(positions * pitch)),
        out(causalprune::aligned_array<float>(positions * pitch)) {
    std::normal_distribution<float> normal;
    const auto fill = [&](float* to, std::int64_t count) {
      std::generate_n(to, count, [&] { return normal(draw); });
    };
    fill(plain.get(), positions * pitch);
    fill(residual.get(), positions * pitch);
    std::fill_n(out.get(), positions * pitch, -7.0f);
    for (std::vector<float>* each : {&scale, &shift}) {
      each->resize(static_cast<std::size_t>(u.outputs));
      fill(each->data(), u.outputs);
    }
    difference.resize(static_cast<std::size_t>(u.rows * u.changed * u.height * u.width));
    fill(difference.data(), static_cast<std::int64_t>(difference.size()));
    weight.resize(static_cast<std::size_t>(u.outputs * u.changed * u.kernel[0] * u.kernel[1]));
    fill(weight.data(), static_cast<std::int64_t>(weight.size()));
  }

  ChannelUpdateLaunch launch() const {
    const std::int64_t plane = u.height * u.width, taps = u.kernel[0] * u.kernel[1];
    const std::int64_t of_row = u.out(1) * pitch, of_image = u.out(0) * of_row;
    causalprune::ChannelUpdateProblem p{u.rows,
                                        u.changed,
                                        u.height,
                                        u.width,
                                        u.outputs,
                                        u.out(0),
                                        u.out(1),
                                        u.kernel[0],
                                        u.kernel[1],
                                        u.stride[0],
                                        u.stride[1],
                                        u.padding[0],
                                        u.padding[1],
                                        u.dilation[0],
                                        u.dilation[1],
                                        false,
                                        plain.get(),
                                        {of_image, 1, of_row, pitch},
                                        difference.data(),
                                        {u.changed * plane, plane, u.width, 1},
                                        weight.data(),
                                        {u.changed * taps, taps, u.kernel[1], 1},
                                        out.get(),
                                        {of_image, 1, of_row, pitch}};
    if (u.channels_last) {
      p.difference_stride[1] = 1;
      p.difference_stride[2] = u.width * u.changed;
      p.difference_stride[3] = u.changed;
    }
    return plan_channel_update(p);
  }

  // The largest error, as a share of the sum of absolute terms; infinite where a number is missing
  // or where something was written beyond the outputs.
  double worst(const UpdateEpilogue& e) const {
    double worst = 0.0;
    for (std::int64_t at = 0; at < positions * pitch; ++at) {
      const std::int64_t o = at % pitch;
      if (o >= u.outputs) {
        if (out[at] != -7.0f) return std::numeric_limits<double>::infinity();
        continue;
      }
      double size = std::abs(plain[at]);
      double value = sum_at(at / pitch, o, plain[at], size);
      const auto k = static_cast<std::size_t>(o);
      if (e.scale != nullptr) value *= scale[k], size *= std::abs(scale[k]);
      if (e.shift != nullptr) value += shift[k], size += std::abs(shift[k]);
      if (e.residual.values != nullptr) value += residual[at], size += std::abs(residual[at]);
      if (e.relu) value = std::max(value, 0.0);
      const double off = std::abs(out[at] - value) / size;
      worst = std::isnan(off) ? std::numeric_limits<double>::infinity() : std::max(worst, off);
    }
    return worst;
  }

  double sum_at(std::int64_t position, std::int64_t o, double sum, double& size) const {
    const std::int64_t x = position % u.out(1), y = position / u.out(1) % u.out(0);
    const std::int64_t image = position / u.out(1) / u.out(0);
    for (std::int64_t k = 0; k < u.changed * u.kernel[0] * u.kernel[1]; ++k) {
      const std::int64_t kx = k % u.kernel[1], ky = k / u.kernel[1] % u.kernel[0];
      const std::int64_t c = k / u.kernel[1] / u.kernel[0];
      const std::int64_t row = y * u.stride[0] - u.padding[0] + ky * u.dilation[0];
      const std::int64_t column = x * u.stride[1] - u.padding[1] + kx * u.dilation[1];
      if (row < 0 || row >= u.height || column < 0 || column >= u.width) continue;
      const std::int64_t at = u.channels_last
                                  ? ((image * u.height + row) * u.width + column) * u.changed + c
                                  : ((image * u.changed + c) * u.height + row) * u.width + column;
      const double term =
          static_cast<double>(
              weight[static_cast<std::size_t>(o * u.changed * u.kernel[0] * u.kernel[1] + k)]) *
          difference[static_cast<std::size_t>(at)];
      sum += term;
      size += std::abs(term);
    }
    return sum;
  }

  Update u;
  std::int64_t pitch, positions;
  causalprune::AlignedArray<float> plain, residual, out;
  std::vector<float> difference, weight, scale, shift;
};

template <int Across>
void check_update(const Update& update, std::mt19937& draw) {
  for (int which = 0; which < 4; ++which) {
    const DrawnUpdate drawn(update, draw);
    ChannelUpdateLaunch launch = drawn.launch();
    UpdateEpilogue& e = launch.epilogue;
    e.relu = which % 2 == 1;
    if (which >= 1) e.scale = drawn.scale.data();
    if (which >= 2) e.shift = drawn.shift.data();
    if (which >= 3) {
      e.residual = {drawn.residual.get(), launch.out.image_stride, launch.out.row_stride,
                    launch.out.column_stride};
    }
    run_staged<ChannelUpdates<Across>>(launch, draw);
    const double worst = drawn.worst(e);
    check(worst <= 1e-6, std::to_string(update.changed) + " channels to " +
                             std::to_string(update.outputs) + (launch.by_four ? ", by four" : "") +
                             ", epilogue " + std::to_string(which) + ", across " +
                             std::to_string(Across) + ", off by " + std::to_string(worst * 1e6) +
                             "e-6");
  }
}

void check_updates(std::mt19937& draw) {
  for (const Update& update : kUpdates) {
    check_update<1>(update, draw);
    check_update<2>(update, draw);
    check_update<4>(update, draw);
  }
}

}  // namespace

int main() {
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  std::mt19937 draw(seed);
  check_sensitivities(draw);
  check_non_finite(draw);
  check_refused();
  check_updates(draw);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
