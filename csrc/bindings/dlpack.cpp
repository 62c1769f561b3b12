#include "bindings/dlpack.hpp"

#include <cstring>

#include "common/error.hpp"

namespace py = pybind11;

namespace causalprune {

namespace {

struct DlVersion {
  std::uint32_t major;
  std::uint32_t minor;
};

struct DlManagedTensor {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedTensor*);
};

// The table behind a type's __dlpack_c_exchange_api__; entries we do not call are untyped.
struct DlExchangeApi {
  DlVersion version;
  void* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, DlTensor* out);
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

const DlExchangeApi* exchange_api(py::handle tensor) {
  const py::handle type(reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr())));
  const py::object capsule = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  const auto* api =
      static_cast<const DlExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  return api != nullptr && api->version.major == 1 ? api : nullptr;
}

std::string dtype_name(DlDataType dtype) {
  static constexpr const char* kKinds[] = {"int",    "uint",    "float", "opaque",
                                           "bfloat", "complex", "bool"};
  const std::string kind =
      dtype.code < 7 ? kKinds[dtype.code] : "type" + std::to_string(dtype.code);
  return kind == "bool" ? kind : kind + std::to_string(dtype.bits);
}

std::string device_name(std::int32_t type) {
  if (type == kDlCpu) return "cpu";
  if (type == kDlCuda) return "cuda";
  return "device type " + std::to_string(type);
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t k = 0; k < shape.size(); ++k) {
    if (k > 0) text += ", ";
    text += std::to_string(shape[k]);
  }
  return text + "]";
}

}  // namespace

BorrowedTensor::BorrowedTensor(py::handle tensor, const char* name, const char* dtype, int ndim,
                               std::int32_t device_type)
    : name_(name) {
  const DlExchangeApi* api = exchange_api(tensor);
  if (api != nullptr && api->tensor_from_object != nullptr) {
    DlTensor view{};
    if (api->tensor_from_object(tensor.ptr(), &view) != 0) throw py::error_already_set();
    take(view, dtype, ndim, device_type);
    return;
  }
  if (!py::hasattr(tensor, "__dlpack__")) {
    fail(name_, ": expected a tensor, got ", Py_TYPE(tensor.ptr())->tp_name);
  }
  py::object source = py::reinterpret_borrow<py::object>(tensor);
  if (py::hasattr(source, "detach")) source = source.attr("detach")();
  capsule_ = source.attr("__dlpack__")();
  if (!PyCapsule_IsValid(capsule_.ptr(), "dltensor")) {
    fail(name_, ": expected an unused DLPack capsule from __dlpack__");
  }
  const auto* managed =
      static_cast<const DlManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
  take(managed->tensor, dtype, ndim, device_type);
}

void BorrowedTensor::take(const DlTensor& tensor, const char* dtype, int ndim,
                          std::int32_t device_type) {
  if (tensor.device.type != device_type) {
    fail(name_, ": expected a tensor on ", device_name(device_type), ", got one on ",
         device_name(tensor.device.type));
  }
  const std::string got = dtype_name(tensor.dtype);
  if (got != dtype || tensor.dtype.lanes != 1) {
    fail(name_, ": expected dtype ", dtype, ", got ", got);
  }
  if (tensor.ndim != ndim) {
    fail(name_, ": expected ", ndim, " dimensions, got ", tensor.ndim);
  }
  device_id_ = tensor.device.id;
  shape_.assign(tensor.shape, tensor.shape + tensor.ndim);
  if (tensor.strides != nullptr) {
    strides_.assign(tensor.strides, tensor.strides + tensor.ndim);
  } else {
    strides_.assign(shape_.size(), 1);
    for (int k = ndim - 2; k >= 0; --k) {
      const auto at = static_cast<std::size_t>(k);
      strides_[at] = strides_[at + 1] * shape_[at + 1];
    }
  }
  data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
}

bool BorrowedTensor::contiguous() const {
  for (const std::int64_t size : shape_) {
    if (size == 0) return true;
  }
  std::int64_t expected = 1;
  for (std::size_t k = shape_.size(); k-- > 0;) {
    if (shape_[k] != 1 && strides_[k] != expected) return false;
    expected *= shape_[k];
  }
  return true;
}

void BorrowedTensor::expect_shape(const std::vector<std::int64_t>& shape, const char* why) const {
  if (shape_ != shape) {
    fail(name_, ": expected shape ", shape_text(shape), " (", why, "), got ", shape_text(shape_));
  }
}

void BorrowedTensor::expect_contiguous() const {
  if (!contiguous())
    fail(name_, ": expected contiguous memory, got strides ", shape_text(strides_));
}

void BorrowedTensor::expect_same_device(const BorrowedTensor& other) const {
  if (device_id_ != other.device_id_) {
    fail(name_, ": expected a tensor on cuda:", other.device_id_, ", as ", other.name_,
         " is, got one on cuda:", device_id_);
  }
}

void* current_stream(py::handle tensor, std::int32_t device_id) {
  const DlExchangeApi* api = exchange_api(tensor);
  if (api == nullptr || api->current_stream == nullptr) return nullptr;
  void* stream = nullptr;
  if (api->current_stream(kDlCuda, device_id, &stream) != 0) throw py::error_already_set();
  return stream;
}

}  // namespace causalprune
