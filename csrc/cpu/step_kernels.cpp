// fp32 goes to the kernels of kernels.h as it lies. 16-bit types are widened on the way in and
// rounded on the way out, in memory of the host: this device stands for others, speed is theirs.

#include "cpu/step_kernels.h"

#include <vector>

#include "cpu/kernels.h"
#include "cpu/numbers.h"

namespace sdengine::cpu {

using runtime::DataType;
using runtime::StepBuffers;
using runtime::StepState;

namespace {

const double* current_row(const StepBuffers& buffers) {
  return buffers.rows + static_cast<std::size_t>(buffers.state->row) * runtime::kRowDoubles;
}

template <typename T>
std::vector<float> widen(const void* values, std::size_t count) {
  const T* const first = static_cast<const T*>(values);
  std::vector<float> wide(count);
  for (std::size_t i = 0; i < count; ++i) wide[i] = to_float(first[i]);
  return wide;
}

// Calls `run` with the values as fp32.
template <typename Run>
void with_floats(const void* values, DataType type, std::size_t count, const Run& run) {
  switch (type) {
    case DataType::kFloat32:
      return run(static_cast<const float*>(values));
    case DataType::kFloat16:
      return run(widen<Half>(values, count).data());
    case DataType::kBFloat16:
      return run(widen<BFloat16>(values, count).data());
  }
}

template <typename T>
void scale_as(const float* source, std::size_t num_elements, float factor, void* out) {
  T* const target = static_cast<T*>(out);
  for (std::size_t e = 0; e < num_elements; ++e) {
    target[e] = from_float<T>(factor * source[e]);
  }
}

}  // namespace

void scale(const float* source, std::size_t num_elements, double factor, void* out, DataType type) {
  const auto rounded = static_cast<float>(factor);
  switch (type) {
    case DataType::kFloat32:
      return scale_as<float>(source, num_elements, rounded, out);
    case DataType::kFloat16:
      return scale_as<Half>(source, num_elements, rounded, out);
    case DataType::kBFloat16:
      return scale_as<BFloat16>(source, num_elements, rounded, out);
  }
}

void prepare_step(const StepBuffers& buffers) {
  if (buffers.state->row >= buffers.state->num_rows) return;
  const double* const row = current_row(buffers);
  auto* sample = static_cast<unsigned char*>(buffers.sample);
  for (std::size_t copy = 0; copy < buffers.copies; ++copy) {
    scale(buffers.registers, buffers.num_elements, row[0], sample, buffers.type);
    sample += buffers.num_elements * size_of(buffers.type);
  }
  for (std::size_t i = 0; i < buffers.num_timesteps; ++i) {
    buffers.timestep[i] = static_cast<float>(row[runtime::kTimestepDouble]);
  }
}

void finish_step(const StepBuffers& buffers) {
  StepState& state = *buffers.state;
  const auto R = static_cast<std::size_t>(state.num_registers);
  const double* const row = current_row(buffers);
  const double* const A = row + 2;
  const float* const noise =
      buffers.noise +
      static_cast<std::size_t>(row[runtime::kRowDoubles - 1]) * buffers.num_elements;
  const StepCoefficients coefficients{A, A + R * R, A + R * R + R, R};
  bool finite = true;
  with_floats(buffers.noise_pred, buffers.type, buffers.copies * buffers.num_elements,
              [&](const float* noise_pred) {
                finite = guided_step(buffers.registers, noise_pred, noise, buffers.num_elements,
                                     buffers.copies == 2, state.guidance_scale, coefficients);
              });
  ++state.row;
  if (!finite && state.not_finite_step == 0) state.not_finite_step = state.row;
  prepare_step(buffers);
}

void to_pixels(const void* images, DataType type, std::size_t batch, std::size_t num_pixels,
               std::uint8_t* out, std::int32_t* not_finite) {
  with_floats(images, type, batch * 3 * num_pixels, [&](const float* values) {
    if (!images_to_uint8(values, batch, num_pixels, out)) *not_finite = 1;
  });
}

}  // namespace sdengine::cpu
