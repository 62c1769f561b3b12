// The CUDA runtime from C++: errors, the device guard, and whether there is a device at all.
// Nothing here touches the driver before it is called, so a machine without one imports the library
// fine.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace causalprune {

class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct CudaStatus {
  int runtime_version;
  int device_count;
  std::string message;  // empty, or why there is no device
};

CudaStatus cuda_status();

}  // namespace causalprune
