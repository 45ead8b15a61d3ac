// What the bindings of pyttc._cuda share: a launch happens on the tensor's device and torch's current
// stream of it, allocates nothing and synchronises nothing, so that graph capture works.
#pragma once
#include "cuda_api.h"
#include "tensor.h"

namespace pyttc {

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

class Launch {
 public:
  explicit Launch(const Tensor& t) {
    if (t.t.device.type != dlpack::kCuda) return;  // emulated: the tensors are on the host
    void* current = nullptr;
    if (exchange_api()->current_work_stream(t.t.device.type, t.t.device.id, &current))
      throw py::error_already_set();
    stream = static_cast<cudaStream_t>(current);
    check_cuda(cudaGetDevice(&before_));
    if (before_ != t.t.device.id) check_cuda(cudaSetDevice(t.t.device.id));
    here_ = t.t.device.id;
  }
  ~Launch() {
    if (before_ != here_) cudaSetDevice(before_);
  }
  Launch(const Launch&) = delete;

  cudaStream_t stream = nullptr;

 private:
  int before_ = 0, here_ = 0;
};

inline Float float_of(const Tensor& t) {
  switch (t.dtype()) {
    case DType::f32: return Float::f32;
    case DType::bf16: return Float::bf16;
    case DType::f16: return Float::f16;
    default: throw py::type_error("dtype must be float32, bfloat16 or float16");
  }
}

void bind_merge_states(py::module_& m);

}  // namespace pyttc
