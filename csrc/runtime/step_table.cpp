#include "runtime/step_table.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace sdengine::runtime {
namespace {

static_assert(sizeof(StepState) % sizeof(double) == 0, "rows follow the state at once");
constexpr std::size_t kStateDoubles = sizeof(StepState) / sizeof(double);

void check_count(const char* name, std::size_t count, std::size_t max_count) {
  if (count == 0 || count > max_count) {
    throw std::invalid_argument(std::string(name) + ": " + std::to_string(count) +
                                " is not accepted; expected 1 to " + std::to_string(max_count));
  }
}

}  // namespace

bool Program::needs_noise(std::size_t step) const {
  const double* const row = d + step * num_registers;
  return std::any_of(row, row + num_registers, [](double value) { return value != 0.0; });
}

std::size_t Program::noise_before(std::size_t step) const {
  std::size_t count = 0;
  for (std::size_t k = 0; k < step; ++k) count += needs_noise(k) ? 1 : 0;
  return count;
}

StepTable::StepTable(const Program& program, double guidance_scale, std::size_t max_steps,
                     std::size_t max_registers, std::size_t first_step) {
  check_count("steps", program.num_steps, max_steps);
  check_count("registers", program.num_registers, std::min(max_registers, kMaxRegisters));
  packed_.assign(kStateDoubles + program.num_steps * kRowDoubles, 0.0);

  StepState state{};
  state.guidance_scale = guidance_scale;
  state.row = static_cast<std::int32_t>(first_step);
  state.num_registers = static_cast<std::int32_t>(program.num_registers);
  state.num_rows = static_cast<std::int32_t>(program.num_steps);
  std::memcpy(packed_.data(), &state, sizeof state);

  const std::size_t R = program.num_registers;
  std::size_t num_noises = 0;
  double* row = packed_.data() + kStateDoubles;
  for (std::size_t k = 0; k < program.num_steps; ++k, row += kRowDoubles) {
    row[0] = program.c_in[k];
    row[kTimestepDouble] = program.t[k];
    double* end = std::copy_n(program.A + k * R * R, R * R, row + 2);
    end = std::copy_n(program.b + k * R, R, end);
    std::copy_n(program.d + k * R, R, end);
    if (program.needs_noise(k)) {
      row[kNoiseSlotDouble] = static_cast<double>(num_noises++ % kNoiseSlots);
    }
  }
}

}  // namespace sdengine::runtime
