// prepare_step reads one register and writes `copies` samples; finish_step reads R registers,
// `copies` predictions and the noise, writes R registers and the next step's samples: (2R + 3) * 4
// bytes an element at most, a few MB. Neighbouring threads take neighbouring elements, so that
// every access is coalesced; nothing is reused, so there is no tiling. Sums are double as on the
// CPU: the little arithmetic hides behind the memory. Row, register count and guidance scale come
// from device memory, so one captured graph runs every step of every sampler. A launch costs about
// as much as the step itself, so that a step's end and the next one's begin are one.

#include <algorithm>

#include "cuda/numbers.h"
#include "cuda/step_kernels.h"

namespace sdengine::cuda {
namespace {

using runtime::kRowDoubles;
using runtime::StepState;

// What the network reads of a row.
template <typename T>
struct Inputs {
  const StepState* state;
  const double* rows;
  T* sample;
  float* timestep;
  std::size_t num_elements, copies, num_timesteps;

  // row: of the table; nothing happens behind its last. first: of the registers, at e.
  SDENGINE_BODY void write(std::size_t e, int row, float first) const {
    if (row >= state->num_rows) return;
    const double* const numbers = rows + static_cast<std::size_t>(row) * kRowDoubles;
    if (e < num_elements) {
      const T value = from_float<T>(static_cast<float>(numbers[0]) * first);
      for (std::size_t copy = 0; copy < copies; ++copy) sample[copy * num_elements + e] = value;
    }
    if (e < num_timesteps) timestep[e] = static_cast<float>(numbers[runtime::kTimestepDouble]);
  }
};

template <typename T>
struct PrepareBody {
  const float* registers;
  Inputs<T> inputs;

  SDENGINE_BODY void operator()(std::size_t e) const {
    inputs.write(e, inputs.state->row, e < inputs.num_elements ? registers[e] : 0.0f);
  }
};

template <typename T>
struct FinishBody {
  float* registers;
  const T* noise_pred;
  const float* noise;
  StepState* state;
  Inputs<T> inputs;

  SDENGINE_BODY void operator()(std::size_t e) const {
    const float first = e < inputs.num_elements ? step(e) : 0.0f;
    inputs.write(e, state->row + 1, first);
  }

  // What one thread does once all have done their elements: none still reads the row.
  SDENGINE_BODY void last() const { ++state->row; }

  SDENGINE_BODY double guided(std::size_t e) const {
    const double uncond = to_float(noise_pred[e]);
    if (inputs.copies == 1) return uncond;
    const double cond = to_float(noise_pred[inputs.num_elements + e]);
    return uncond + state->guidance_scale * (cond - uncond);
  }

  // Returns the first register.
  SDENGINE_BODY float step(std::size_t e) const {
    const std::size_t num_elements = inputs.num_elements;
    const int R = state->num_registers;
    const double* const row = inputs.rows + static_cast<std::size_t>(state->row) * kRowDoubles;
    const double* const A = row + 2;
    const double* const b = A + R * R;
    const double* const d = b + R;
    const double m = guided(e);
    double old[kMaxRegisters];
    // Bounds known to the compiler keep `old` in registers of the processor.
    for (int j = 0; j < static_cast<int>(kMaxRegisters); ++j) {
      if (j < R) old[j] = registers[static_cast<std::size_t>(j) * num_elements + e];
    }
    bool finite = true;
    float first = 0.0f;
    for (int i = 0; i < R; ++i) {
      double sum = b[i] * m;
      for (int j = 0; j < static_cast<int>(kMaxRegisters); ++j) {
        // A register without weight may hold anything, NaN too.
        if (j < R && A[i * R + j] != 0.0) sum += A[i * R + j] * old[j];
      }
      if (d[i] != 0.0) {
        const auto slot = static_cast<std::size_t>(row[runtime::kNoiseSlotDouble]);
        sum += d[i] * static_cast<double>(noise[slot * num_elements + e]);
      }
      const float value = static_cast<float>(sum);
      finite = finite && is_finite(value);
      if (i == 0) first = value;
      registers[static_cast<std::size_t>(i) * num_elements + e] = value;
    }
    // All threads that write write the same.
    if (!finite && state->not_finite_step == 0) state->not_finite_step = state->row + 1;
    return first;
  }
};

template <typename T>
Inputs<T> inputs_of(const runtime::StepBuffers& buffers) {
  return {buffers.state,        buffers.rows,         static_cast<T*>(buffers.sample),
          buffers.timestep,     buffers.num_elements, buffers.copies,
          buffers.num_timesteps};
}

// Also of nothing the last thread does something.
std::size_t num_threads_of(const runtime::StepBuffers& buffers) {
  return std::max({std::size_t{1}, buffers.num_elements, buffers.num_timesteps});
}

template <typename T>
void prepare(const runtime::StepBuffers& buffers, cudaStream_t stream) {
  launch(PrepareBody<T>{buffers.registers, inputs_of<T>(buffers)}, num_threads_of(buffers), stream,
         "starting prepare_step");
}

template <typename T>
void finish(const runtime::StepBuffers& buffers, cudaStream_t stream) {
  const FinishBody<T> body{buffers.registers, static_cast<const T*>(buffers.noise_pred),
                           buffers.noise, buffers.state, inputs_of<T>(buffers)};
  launch_then_last(body, num_threads_of(buffers), &buffers.state->blocks_done, stream,
                   "starting finish_step");
}

template <typename T>
struct ScaleBody {
  const float* source;
  float factor;
  T* out;

  SDENGINE_BODY void operator()(std::size_t e) const { out[e] = from_float<T>(factor * source[e]); }
};

template <typename T>
void scale_as(const float* source, std::size_t num_elements, double factor, void* out,
              cudaStream_t stream) {
  launch(ScaleBody<T>{source, static_cast<float>(factor), static_cast<T*>(out)}, num_elements,
         stream, "starting scale");
}

template <typename T>
void load_for_type() {
  load<PrepareBody<T>>();
  load_then_last<FinishBody<T>>();
  load<ScaleBody<T>>();
}

}  // namespace

void load_step_kernels() {
  load_for_type<float>();
  load_for_type<__half>();
  load_for_type<__nv_bfloat16>();
}

void scale(const float* source, std::size_t num_elements, double factor, void* out,
           runtime::DataType type, cudaStream_t stream) {
  switch (type) {
    case runtime::DataType::kFloat32:
      return scale_as<float>(source, num_elements, factor, out, stream);
    case runtime::DataType::kFloat16:
      return scale_as<__half>(source, num_elements, factor, out, stream);
    case runtime::DataType::kBFloat16:
      return scale_as<__nv_bfloat16>(source, num_elements, factor, out, stream);
  }
}

void prepare_step(const runtime::StepBuffers& buffers, cudaStream_t stream) {
  switch (buffers.type) {
    case runtime::DataType::kFloat32:
      return prepare<float>(buffers, stream);
    case runtime::DataType::kFloat16:
      return prepare<__half>(buffers, stream);
    case runtime::DataType::kBFloat16:
      return prepare<__nv_bfloat16>(buffers, stream);
  }
}

void finish_step(const runtime::StepBuffers& buffers, cudaStream_t stream) {
  switch (buffers.type) {
    case runtime::DataType::kFloat32:
      return finish<float>(buffers, stream);
    case runtime::DataType::kFloat16:
      return finish<__half>(buffers, stream);
    case runtime::DataType::kBFloat16:
      return finish<__nv_bfloat16>(buffers, stream);
  }
}

}  // namespace sdengine::cuda
