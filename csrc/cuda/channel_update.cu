// One staged product. With a few changed channels it is bound by memory: plain is read and out is
// written once, sixteen bytes at a time, channels innermost.

#include "cuda/channel_update.cuh"
#include "cuda/channel_update_tile.cuh"
#include "cuda/staged_kernel.cuh"

namespace causalprune {

namespace {

using namespace cuda;

template <int Across>
void launch_across(const ChannelUpdateLaunch& launch, cudaStream_t stream) {
  using Work = ChannelUpdates<Across>;
  launch_staged<Work>(launch, Work::blocks(launch), "channel_update", stream);
}

}  // namespace

void channel_update_cuda(const ChannelUpdateProblem& p, int device, void* stream) {
  const ChannelUpdateLaunch launch = plan_channel_update(p);
  const std::int64_t columns = p.n_rows * p.out_height * p.out_width;
  if (columns == 0 || p.n_outputs == 0) return;
  const DeviceGuard guard(device);
  const auto on = static_cast<cudaStream_t>(stream);
  switch (choose_across(p.n_outputs, columns)) {
    case 1: return launch_across<1>(launch, on);
    case 2: return launch_across<2>(launch, on);
    default: return launch_across<4>(launch, on);
  }
}

}  // namespace causalprune
