#pragma once

#include <cstddef>
#include <cstdint>

#include "common/step.h"

// The memory of a sampler step. All that changes from step to step, image to image or sampler to
// sampler is read from device memory, so that one captured graph serves them all.
namespace sdengine::runtime {

// Regions begin at multiples of it; every vector load of a GPU is happy with that.
constexpr std::size_t kAlignment = 256;

enum class DataType { kFloat32, kFloat16, kBFloat16 };

constexpr std::size_t size_of(DataType type) { return type == DataType::kFloat32 ? 4 : 2; }

// Lies in device memory before the rows.
struct StepState {
  double guidance_scale;
  std::int32_t row;              // of the table, the next one to run
  std::int32_t not_finite_step;  // 1 + the first row with a NaN or infinite value, or 0
  std::int32_t num_registers;
  std::int32_t num_rows;     // of the table
  std::int32_t blocks_done;  // of a GPU's finish_step that is running; 0 between two
  std::int32_t reserved;
};

// A row of the table: c_in, t, A [R,R], b [R], d [R], packed; rows are this far apart for every R.
// The last double is the slot of the row's noise.
constexpr std::size_t kRowDoubles = 2 + kMaxRegisters * kMaxRegisters + 2 * kMaxRegisters + 1;
constexpr std::size_t kTimestepDouble = 1;
constexpr std::size_t kNoiseSlotDouble = kRowDoubles - 1;

// How many evaluations' noise lies on the device at once.
constexpr std::size_t kNoiseSlots = 15;

struct StepBuffers {
  float* registers;        // [R, num_elements]
  void* sample;            // [copies, num_elements] of `type`; the network's input
  const void* noise_pred;  // [copies, num_elements] of `type`; unconditional half first
  float* noise;            // [kNoiseSlots, num_elements]; read only in rows whose d isn't zero
  float* timestep;         // [num_timesteps]
  StepState* state;
  const double* rows;  // [K, kRowDoubles]
  std::size_t num_elements;
  std::size_t copies;  // 2 with guidance, else 1
  std::size_t num_timesteps;
  DataType type;
};

}  // namespace sdengine::runtime
