// torch tensors as arguments of bound functions, through torch's DLPack exchange API. Only the
// files that define a Python module include this: pybind11's headers are most of what a build
// costs.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "per_row.h"
#include "tensor.h"

namespace pyttc {

inline const dlpack::ExchangeApi*& exchange_api() {
  static const dlpack::ExchangeApi* api = nullptr;
  return api;
}

// The types of the tensors that are what they hold: a subclass may stand for something else.
inline std::array<PyObject*, 2>& plain_types() {
  static std::array<PyObject*, 2> types{};
  return types;
}

inline bool is_plain(pybind11::handle source) {
  const auto type = reinterpret_cast<PyObject*>(Py_TYPE(source.ptr()));
  return type == plain_types()[0] || type == plain_types()[1];
}

inline pybind11::object ask(pybind11::handle tensor, PyObject* method) {
  PyObject* const answer = PyObject_CallMethodNoArgs(tensor.ptr(), method);
  if (!answer) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(answer);
}

// A tensor whose storage was freed, or never was, has the address of its offset from null. Real
// memory lies above the first tebibyte, as a rule: torch is only asked about what does not.
inline bool has_memory(pybind11::handle source, const dlpack::Tensor& t) {
  const auto address = reinterpret_cast<uintptr_t>(t.data);
  if (address >> 40 || Tensor{t}.numel() == 0) return true;
  static PyObject* const storage_offset = PyUnicode_InternFromString("storage_offset");
  return address != ask(source, storage_offset).cast<uint64_t>() * (t.dtype.bits / 8);
}

inline void bind_torch(pybind11::object tensor_type, pybind11::object parameter_type) {
  pybind11::object capsule = tensor_type.attr("__dlpack_c_exchange_api__");
  auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!api) throw pybind11::error_already_set();
  if (api->version.major != dlpack::kMajorVersion || !api->tensor_from_py_object)
    throw pybind11::import_error("this torch speaks another version of the DLPack exchange API");
  exchange_api() = api;
  plain_types() = {tensor_type.release().ptr(), parameter_type.release().ptr()};
}

}  // namespace pyttc

template <>
struct pybind11::detail::type_caster<pyttc::Output> {
  PYBIND11_TYPE_CASTER(pyttc::Output, const_name("torch.Tensor"));
  bool load(handle source, bool) {
    if (source.is_none()) return false;
    if (!pyttc::is_plain(source))
      throw type_error(std::string("got ") + Py_TYPE(source.ptr())->tp_name +
                       ", expected a torch.Tensor");
    if (pyttc::exchange_api()->tensor_from_py_object(source.ptr(), &value.t))
      throw error_already_set();
    if (!pyttc::has_memory(source, value.t)) throw std::runtime_error("a tensor without memory");
    return true;
  }
};

template <>
struct pybind11::detail::type_caster<pyttc::Tensor> {
  PYBIND11_TYPE_CASTER(pyttc::Tensor, const_name("torch.Tensor"));
  bool load(handle source, bool convert) {
    make_caster<pyttc::Output> any;
    if (!any.load(source, convert)) return false;
    value = cast_op<pyttc::Output&>(any);
    // A view that is negated when it is read (as of a conjugate's imaginary part): torch's
    // dispatcher materialises it first.
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    if (pyttc::ask(source, is_neg).ptr() != Py_False) throw std::runtime_error("a negated view");
    return true;
  }
};

template <class Wide, class Narrow>
struct pybind11::detail::type_caster<pyttc::PerRow<Wide, Narrow>> {
  using Value = pyttc::PerRow<Wide, Narrow>;
  PYBIND11_TYPE_CASTER(Value, const_name("float | torch.Tensor"));
  bool load(handle source, bool convert) {
    if (PyFloat_Check(source.ptr()) || PyLong_Check(source.ptr())) {
      make_caster<Wide> number;
      if (!number.load(source, convert)) return false;
      value = Value(cast_op<Wide>(number));
      return true;
    }
    make_caster<pyttc::Tensor> tensor;
    if (!tensor.load(source, convert)) return false;
    value = Value(cast_op<const pyttc::Tensor&>(tensor));
    return true;
  }
};
