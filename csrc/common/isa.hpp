// The instruction sets a kernel comes in, and which one this process uses.
#pragma once

#include <string>
#include <vector>

namespace causalprune {

enum class Isa { scalar, avx2, avx512, neon };

const char* isa_name(Isa isa);

// Whether the library holds this variant and the processor can run it.
bool isa_available(Isa isa);

// Every variant that can run here, slowest first.
std::vector<Isa> available_isas();

// The variant named by the environment variable CAUSALPRUNE_ISA, else the fastest available. Throws
// std::invalid_argument when the variable names one that is unknown or cannot run here.
Isa chosen_isa();

// The variant of this name ("scalar", "avx2", "avx512", "neon"); empty means chosen_isa().
Isa isa_by_name(const std::string& name);

}  // namespace causalprune
