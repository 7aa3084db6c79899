#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "python/generators.h"
#include "python/runtime_types.h"
#include "runtime/step_table.h"

namespace sdengine::python {

// A generator an image, in the order of the batch.
using Generators = std::vector<std::variant<SharedMersenne*, SharedPhilox*>>;

inline const double* coefficients(const char* name, const pybind11::array& array,
                                  const Shape& expected) {
  const double* const values = input<double>(name, array);
  if (Shape(array.shape(), array.shape() + array.ndim()) != expected) {
    std::string text;
    for (const pybind11::ssize_t size : expected)
      text += (text.empty() ? "[" : ",") + std::to_string(size);
    wrong_shape(name, array, text + "]");
  }
  return values;
}

// A program's arrays, and what the runtime reads in them.
struct HeldProgram {
  pybind11::array t, c_in, A, b, d;
  double guidance_scale;
  runtime::Program view;

  HeldProgram(pybind11::array its_t, pybind11::array its_c_in, pybind11::array its_A,
              pybind11::array its_b, pybind11::array its_d, double scale)
      : t(std::move(its_t)),
        c_in(std::move(its_c_in)),
        A(std::move(its_A)),
        b(std::move(its_b)),
        d(std::move(its_d)),
        guidance_scale(scale),
        view(checked()) {}

 private:
  runtime::Program checked() const {
    if (b.ndim() != 2) wrong_shape("b", b, "[K,R]");
    const pybind11::ssize_t K = b.shape(0), R = b.shape(1);
    return {coefficients("t", t, {K}),       coefficients("c_in", c_in, {K}),
            coefficients("A", A, {K, R, R}), coefficients("b", b, {K, R}),
            coefficients("d", d, {K, R}),    static_cast<std::size_t>(K),
            static_cast<std::size_t>(R)};
  }
};

}  // namespace sdengine::python
