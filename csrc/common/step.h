#pragma once

#include <cstddef>

namespace sdengine {

// Samplers use up to 5 registers; the bound keeps the kernels' scratch on the stack.
constexpr std::size_t kMaxRegisters = 8;

// One row of a sampler program, in host memory.
struct StepCoefficients {
  const double* A;  // [R,R]
  const double* b;  // [R]
  const double* d;  // [R]
  std::size_t num_registers;
};

}  // namespace sdengine
