#include "common/isa.hpp"

#include <cstdlib>

#include "common/error.hpp"

namespace causalprune {

namespace {

constexpr Isa kSlowestFirst[] = {Isa::scalar, Isa::neon, Isa::avx2, Isa::avx512};

std::string available_names() {
  std::string names;
  for (const Isa isa : available_isas()) {
    if (!names.empty()) names += ", ";
    names += isa_name(isa);
  }
  return names;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::neon: return "neon";
    case Isa::scalar: break;
  }
  return "scalar";
}

bool isa_available(Isa isa) {
  switch (isa) {
    case Isa::scalar: return true;
#if defined(CAUSALPRUNE_HAS_AVX2)
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#if defined(CAUSALPRUNE_HAS_AVX512)
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
#if defined(CAUSALPRUNE_HAS_NEON)
    case Isa::neon: return true;
#endif
    default: return false;
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> available;
  for (const Isa isa : kSlowestFirst) {
    if (isa_available(isa)) available.push_back(isa);
  }
  return available;
}

Isa isa_by_name(const std::string& name) {
  if (name.empty()) return chosen_isa();
  for (const Isa isa : available_isas()) {
    if (name == isa_name(isa)) return isa;
  }
  fail("isa: expected one of ", available_names(), " (what this machine can run), got '", name,
       "'");
}

Isa chosen_isa() {
  const char* wanted = std::getenv("CAUSALPRUNE_ISA");
  if (wanted == nullptr || *wanted == '\0') return available_isas().back();
  for (const Isa isa : available_isas()) {
    if (std::string(wanted) == isa_name(isa)) return isa;
  }
  fail("CAUSALPRUNE_ISA: expected one of ", available_names(),
       " (what this machine can run), got '", wanted, "'");
}

}  // namespace causalprune
