// Tensors from Python by DLPack, borrowed for the length of a call.
//
// The structures below are the public DLPack 1.x ABI (a fixed C layout, so only the layout is ours
// to restate). Where a tensor's type offers the C exchange table it is used: no Python object is
// made. Otherwise the tensor's __dlpack__ method is called and the capsule kept for the call.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace causalprune {

struct DlDevice {
  std::int32_t type;
  std::int32_t id;
};
inline constexpr std::int32_t kDlCpu = 1;
inline constexpr std::int32_t kDlCuda = 2;

struct DlDataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
inline constexpr std::uint8_t kDlFloat = 2;

struct DlTensor {
  void* data;
  DlDevice device;
  std::int32_t ndim;
  DlDataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

// A borrowed tensor: what the kernels need to know, checked against what they accept.
class BorrowedTensor {
 public:
  // `name` is the argument's name in messages. Throws std::invalid_argument for anything that is
  // not a tensor of `dtype` ("float32", "float64", "int32", "int64" or "bool") with `ndim`
  // dimensions on a device of `device_type`.
  BorrowedTensor(pybind11::handle tensor, const char* name, const char* dtype, int ndim,
                 std::int32_t device_type = kDlCpu);

  std::int64_t size(int dimension) const { return shape_[static_cast<std::size_t>(dimension)]; }
  std::int64_t stride(int dimension) const { return strides_[static_cast<std::size_t>(dimension)]; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  std::int32_t device_id() const { return device_id_; }
  bool contiguous() const;

  // Throws std::invalid_argument unless the shape is this one (and, for outputs, writable memory
  // laid out without gaps).
  void expect_shape(const std::vector<std::int64_t>& shape, const char* why) const;
  void expect_contiguous() const;
  void expect_same_device(const BorrowedTensor& other) const;

  const float* floats() const { return static_cast<const float*>(data_); }
  float* mutable_floats() const { return static_cast<float*>(data_); }
  double* doubles() const { return static_cast<double*>(data_); }
  const std::int32_t* int32s() const { return static_cast<const std::int32_t*>(data_); }
  const std::int64_t* int64s() const { return static_cast<const std::int64_t*>(data_); }
  std::int64_t* mutable_int64s() const { return static_cast<std::int64_t*>(data_); }
  const std::uint8_t* bools() const { return static_cast<const std::uint8_t*>(data_); }

 private:
  void take(const DlTensor& tensor, const char* dtype, int ndim, std::int32_t device_type);

  std::string name_;
  void* data_ = nullptr;
  std::int32_t device_id_ = 0;
  std::vector<std::int64_t> shape_, strides_;
  pybind11::object capsule_;  // keeps the memory alive when it came through __dlpack__
};

// The stream the tensor's framework is working on, for CUDA tensors; null where it cannot be asked.
void* current_stream(pybind11::handle tensor, std::int32_t device_id);

}  // namespace causalprune
