#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <string>

namespace sdengine::python {

inline std::string shape_text(const pybind11::array& array) {
  std::string text = "[";
  for (pybind11::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    text += (axis > 0 ? "," : "") + std::to_string(array.shape(axis));
  }
  return text + "]";
}

[[noreturn]] inline void wrong_shape(const char* name, const pybind11::array& array,
                                     const std::string& expected) {
  throw pybind11::value_error(std::string(name) + ": has shape " + shape_text(array) +
                              "; expected " + expected);
}

// Nothing is converted: a silent copy would cost time and lose what is written in place.
template <typename T>
void check_array(const char* name, const pybind11::array& array) {
  const std::string prefix = std::string(name) + ": ";
  const auto expected = pybind11::dtype::of<T>();
  // The same object, unless somebody made a type of their own: comparing types takes a microsecond.
  if (!array.dtype().is(expected) && !array.dtype().equal(expected)) {
    throw pybind11::type_error(prefix + "is " + pybind11::str(array.dtype()).cast<std::string>() +
                               "; expected " + pybind11::str(expected).cast<std::string>());
  }
  if ((array.flags() & pybind11::array::c_style) == 0) {
    throw pybind11::value_error(prefix + "is not C-contiguous; pass numpy.ascontiguousarray of it");
  }
  if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) != 0) {
    throw pybind11::value_error(prefix + "is not aligned; pass a copy of it");
  }
}

template <typename T>
const T* input(const char* name, const pybind11::array& array) {
  check_array<T>(name, array);
  return static_cast<const T*>(array.data());
}

template <typename T>
T* output(const char* name, pybind11::array& array) {
  check_array<T>(name, array);
  if (!array.writeable()) throw pybind11::value_error(std::string(name) + ": is read-only");
  return static_cast<T*>(array.mutable_data());
}

// Whether the shapes agree from the given axes on.
inline bool same_tail(const pybind11::array& left, pybind11::ssize_t left_axis,
                      const pybind11::array& right, pybind11::ssize_t right_axis) {
  if (left.ndim() - left_axis != right.ndim() - right_axis) return false;
  for (; left_axis < left.ndim(); ++left_axis, ++right_axis) {
    if (left.shape(left_axis) != right.shape(right_axis)) return false;
  }
  return true;
}

}  // namespace sdengine::python
