// pyttc._cuda: the CUDA kernels, bound. The only file of them that knows Python.
#include "binding.h"
#include "ops.h"

namespace pyttc {
namespace {

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next op's launch would report it
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Makes a tensor's device the current one and finds torch's current stream of it.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) {
    if (t.t.device.type != dlpack::kCuda) return;  // emulated: the tensors are on the host
    void* current = nullptr;
    if (exchange_api()->current_work_stream(t.t.device.type, t.t.device.id, &current))
      throw pybind11::error_already_set();
    stream = static_cast<cudaStream_t>(current);
    check(cudaGetDevice(&before_));
    if (before_ != t.t.device.id) check(cudaSetDevice(t.t.device.id));
    here_ = t.t.device.id;
  }
  ~OnDevice() {
    if (before_ != here_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;

  cudaStream_t stream = nullptr;

 private:
  int before_ = 0, here_ = 0;
};

template <class... Args>
auto launcher(cudaError_t (*op)(cudaStream_t, const Tensor&, Args...)) {
  return [op](const Tensor& first, Args... rest) {
    OnDevice device(first);
    check(op(device.stream, first, rest...));
  };
}

}  // namespace
}  // namespace pyttc

PYBIND11_MODULE(PYTTC_MODULE, m) {
  using namespace pyttc;
  m.def("bind_torch", &bind_torch);
  m.attr("archs") = PYTTC_ARCHS;
  m.def("copy_pages", launcher(&copy_pages));
  m.def("merge_states", launcher(&merge_states));
  m.def("sample", launcher(&sample));
  m.def("select_beams", launcher(&select_beams));
  m.def("store_kv", launcher(&store_kv));
  m.def("topk_score", launcher(&topk_score));
}
