// The ceilings of this machine: rates that are possible at all, and what they do not accept.

#include "checks.hpp"
#include "kernels/machine_rates.hpp"

int main() {
  using causalprune::available_isas;
  for (const causalprune::Isa isa : available_isas()) {
    const std::string name = causalprune::isa_name(isa);
    const double peak = causalprune::peak_gflops(isa);
    check(peak > 0.01 && peak < 1e4, name + ": " + std::to_string(peak) + " GFLOP/s");
    for (const std::int64_t bytes : {std::int64_t{1024}, std::int64_t{40961}}) {
      const double rate = causalprune::read_gigabytes_per_second(bytes, isa);
      check(rate > 0.01 && rate < 1e5, name + ": " + std::to_string(rate) + " GB/s");
    }
    refused([&] { causalprune::read_gigabytes_per_second(1023, isa); }, "bytes");
  }
  const double increments = causalprune::increments_per_second();
  check(increments > 1e6 && increments < 1e12, std::to_string(increments) + " increments/s");
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
