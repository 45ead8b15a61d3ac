// Python functions from C++ ones, over Python's stable C interface: one build serves every Python
// from 3.10 on, and a file that binds an op compiles in a second. Arguments by position only:
// handles (borrowed for the call), integers, floats, bools. C++ exceptions become Python's.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <array>
#include <cstdint>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace pyttc::py {

struct error_already_set {};  // Python's error indicator holds the exception

struct error : std::runtime_error {
  PyObject* type;
  error(PyObject* type, const std::string& what) : std::runtime_error(what), type(type) {}
};
inline error value_error(const std::string& what) { return {PyExc_ValueError, what}; }
inline error type_error(const std::string& what) { return {PyExc_TypeError, what}; }
inline error import_error(const std::string& what) { return {PyExc_ImportError, what}; }

template <class T>
T from_python(PyObject* o) {
  if constexpr (std::is_same_v<T, bool>) {
    const int truth = PyObject_IsTrue(o);
    if (truth < 0) throw error_already_set();
    return truth;
  } else if constexpr (std::is_floating_point_v<T>) {
    const double x = PyFloat_AsDouble(o);
    if (x == -1 && PyErr_Occurred()) throw error_already_set();
    return static_cast<T>(x);
  } else {
    using Wide = std::conditional_t<std::is_signed_v<T>, long long, unsigned long long>;
    Wide x;
    if constexpr (std::is_signed_v<T>)
      x = PyLong_AsLongLong(o);
    else
      x = PyLong_AsUnsignedLongLong(o);
    if (x == static_cast<Wide>(-1) && PyErr_Occurred()) throw error_already_set();
    if (x < std::numeric_limits<T>::min() || x > std::numeric_limits<T>::max())
      throw error(PyExc_OverflowError, "integer argument out of range");
    return static_cast<T>(x);
  }
}

// An object somebody else holds.
class handle {
 public:
  handle(PyObject* o) : o_(o) {}
  PyObject* ptr() const { return o_; }
  bool is_none() const { return o_ == Py_None; }
  template <class T>
  T cast() const {
    return from_python<T>(o_);
  }

 private:
  PyObject* o_;
};
using object = handle;

class gil_scoped_release {
 public:
  gil_scoped_release() : state_(PyEval_SaveThread()) {}
  ~gil_scoped_release() { PyEval_RestoreThread(state_); }
  gil_scoped_release(const gil_scoped_release&) = delete;
  void operator=(const gil_scoped_release&) = delete;

 private:
  PyThreadState* state_;
};

template <>
inline handle from_python<handle>(PyObject* o) {
  return o;
}

inline PyObject* to_python(const char* s) { return PyUnicode_FromString(s); }
inline PyObject* to_python(uint32_t x) { return PyLong_FromUnsignedLong(x); }
template <size_t N>
PyObject* to_python(const std::array<uint32_t, N>& values) {
  PyObject* tuple = PyTuple_New(N);
  for (size_t i = 0; tuple && i < N; ++i) PyTuple_SetItem(tuple, i, to_python(values[i]));
  return tuple;
}

template <class R, class... Args>
struct Function {
  PyMethodDef method;
  R (*f)(Args...);

  // What Python calls: `self` is the capsule of a Function.
  static PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t n) {
    auto* function = static_cast<Function*>(PyCapsule_GetPointer(self, nullptr));
    if (n != static_cast<Py_ssize_t>(sizeof...(Args)))
      return PyErr_Format(PyExc_TypeError, "%s takes %d arguments, %d given",
                          function->method.ml_name, int(sizeof...(Args)), int(n));
    try {
      return function->invoke(args, std::index_sequence_for<Args...>());
    } catch (const error_already_set&) {
    } catch (const error& e) {
      PyErr_SetString(e.type, e.what());
    } catch (const std::bad_alloc&) {
      PyErr_NoMemory();
    } catch (const std::invalid_argument& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const std::exception& e) {
      PyErr_SetString(PyExc_RuntimeError, e.what());
    }
    return nullptr;
  }

  template <size_t... I>
  PyObject* invoke(PyObject* const* args, std::index_sequence<I...>) {
    if constexpr (std::is_void_v<R>) {
      f(from_python<std::decay_t<Args>>(args[I])...);
      Py_INCREF(Py_None);
      return Py_None;
    } else {
      return to_python(f(from_python<std::decay_t<Args>>(args[I])...));
    }
  }
};

class module_ {
 public:
  explicit module_(PyObject* m) : m_(m) {}

  template <class R, class... Args>
  void def(const char* name, R (*f)(Args...)) {
    using F = Function<R, Args...>;  // lives as long as the process, as the module does
    auto* call = reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&F::call));
    auto* function = new F{{name, call, METH_FASTCALL, nullptr}, f};
    add(name, PyCFunction_NewEx(&function->method, PyCapsule_New(function, nullptr, nullptr), m_));
  }
  template <class Lambda>
  void def(const char* name, Lambda f) {
    def(name, +f);
  }
  void set(const char* name, const char* value) { add(name, to_python(value)); }

 private:
  void add(const char* name, PyObject* o) {
    if (!o || PyModule_AddObject(m_, name, o)) throw error_already_set();
  }
  PyObject* m_;
};

}  // namespace pyttc::py

// Begins the body that fills module `name`, called `m` there.
#define PYTTC_PYTHON_MODULE(name, m) PYTTC_PYTHON_MODULE_(name, m)
#define PYTTC_PYTHON_MODULE_(name, m)                                                            \
  static void fill_##name(pyttc::py::module_& m);                                                \
  PyMODINIT_FUNC PyInit_##name() {                                                               \
    static PyModuleDef definition = {                                                            \
        PyModuleDef_HEAD_INIT, #name, nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr}; \
    PyObject* created = PyModule_Create(&definition);                                            \
    if (!created) return nullptr;                                                                \
    try {                                                                                        \
      pyttc::py::module_ m(created);                                                             \
      fill_##name(m);                                                                            \
      return created;                                                                            \
    } catch (const pyttc::py::error_already_set&) {                                              \
    }                                                                                            \
    Py_DECREF(created);                                                                          \
    return nullptr;                                                                              \
  }                                                                                              \
  static void fill_##name(pyttc::py::module_& m)
