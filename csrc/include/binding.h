// torch tensors as arguments of bound functions, through torch's DLPack exchange API. Only the
// files that define a Python module include this: pybind11's headers are most of what a build
// costs.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "per_row.h"
#include "tensor.h"

namespace pyttc {

inline const dlpack::ExchangeApi*& exchange_api() {
  static const dlpack::ExchangeApi* api = nullptr;
  return api;
}

inline void bind_torch(pybind11::object tensor_type) {
  pybind11::object capsule = tensor_type.attr("__dlpack_c_exchange_api__");
  auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!api) throw pybind11::error_already_set();
  if (api->version.major != dlpack::kMajorVersion || !api->tensor_from_py_object)
    throw pybind11::import_error("this torch speaks another version of the DLPack exchange API");
  exchange_api() = api;
}

}  // namespace pyttc

template <>
struct pybind11::detail::type_caster<pyttc::Output> {
  PYBIND11_TYPE_CASTER(pyttc::Output, const_name("torch.Tensor"));
  bool load(handle source, bool) {
    if (source.is_none()) return false;
    if (pyttc::exchange_api()->tensor_from_py_object(source.ptr(), &value.t))
      throw error_already_set();
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
    const object negated =
        reinterpret_steal<object>(PyObject_CallMethodNoArgs(source.ptr(), is_neg));
    if (!negated) throw error_already_set();
    if (negated.ptr() != Py_False) throw std::runtime_error("a negated view");
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
