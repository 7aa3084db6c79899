#pragma once

#include <cstddef>
#include <vector>

#include "runtime/step_buffers.h"

namespace sdengine::runtime {

// A sampler program in host memory, as sdengine.samplers makes it: K evaluations, R registers.
struct Program {
  const double* t;     // [K]
  const double* c_in;  // [K]
  const double* A;     // [K,R,R]
  const double* b;     // [K,R]
  const double* d;     // [K,R]
  std::size_t num_steps;
  std::size_t num_registers;

  bool needs_noise(std::size_t step) const;
  // How many evaluations before `step` need noise.
  std::size_t noise_before(std::size_t step) const;
};

// Packs state and rows as they lie in device memory; one copy brings a whole program there.
class StepTable {
 public:
  // first_step: the one to run next.
  // Throws std::invalid_argument for more than max_steps or max_registers, or for none.
  StepTable(const Program& program, double guidance_scale, std::size_t max_steps,
            std::size_t max_registers, std::size_t first_step = 0);

  static std::size_t size_bytes_for(std::size_t num_steps) {
    return sizeof(StepState) + num_steps * kRowDoubles * sizeof(double);
  }

  const void* data() const { return packed_.data(); }
  std::size_t size_bytes() const { return packed_.size() * sizeof(double); }

 private:
  std::vector<double> packed_;
};

}  // namespace sdengine::runtime
