// prepare_step reads one register and writes `copies` samples; finish_step reads R registers,
// `copies` predictions and the noise, and writes R registers: (2R + 3) * 4 bytes an element at
// most, a few MB. Neighbouring threads take neighbouring elements, so that every access is
// coalesced; nothing is reused, so there is no tiling. Sums are double as on the CPU: the little
// arithmetic hides behind the memory. Row, register count and guidance scale come from device
// memory, so one captured graph runs every step of every sampler.

#include "cuda/numbers.h"
#include "cuda/step_kernels.h"

namespace sdengine::cuda {
namespace {

using runtime::kRowDoubles;
using runtime::StepState;

template <typename T>
struct PrepareBody {
  const float* registers;
  const StepState* state;
  const double* rows;
  T* sample;
  float* timestep;
  std::size_t num_elements, copies, num_timesteps;

  SDENGINE_BODY void operator()(std::size_t e) const {
    const double* const row = rows + static_cast<std::size_t>(state->row) * kRowDoubles;
    if (e < num_elements) {
      const T value = from_float<T>(static_cast<float>(row[0]) * registers[e]);
      for (std::size_t copy = 0; copy < copies; ++copy) sample[copy * num_elements + e] = value;
    }
    if (e < num_timesteps) timestep[e] = static_cast<float>(row[runtime::kTimestepDouble]);
  }
};

template <typename T>
struct FinishBody {
  float* registers;
  const T* noise_pred;
  const float* noise;
  StepState* state;
  const double* rows;
  std::size_t num_elements, copies;

  SDENGINE_BODY double guided(std::size_t e) const {
    const double uncond = to_float(noise_pred[e]);
    if (copies == 1) return uncond;
    const double cond = to_float(noise_pred[num_elements + e]);
    return uncond + state->guidance_scale * (cond - uncond);
  }

  SDENGINE_BODY void operator()(std::size_t e) const {
    const int R = state->num_registers;
    const double* const row = rows + static_cast<std::size_t>(state->row) * kRowDoubles;
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
      registers[static_cast<std::size_t>(i) * num_elements + e] = value;
    }
    // All threads that write write the same.
    if (!finite && state->not_finite_step == 0) state->not_finite_step = state->row + 1;
  }
};

// A launch of its own: no other thread may still read the row.
struct AdvanceBody {
  StepState* state;

  SDENGINE_BODY void operator()(std::size_t) const { ++state->row; }
};

template <typename T>
void prepare(const runtime::StepBuffers& buffers, cudaStream_t stream) {
  const PrepareBody<T> body{
      buffers.registers, buffers.state,        buffers.rows,   static_cast<T*>(buffers.sample),
      buffers.timestep,  buffers.num_elements, buffers.copies, buffers.num_timesteps};
  launch(body, std::max(buffers.num_elements, buffers.num_timesteps), stream,
         "starting prepare_step");
}

template <typename T>
void finish(const runtime::StepBuffers& buffers, cudaStream_t stream) {
  const FinishBody<T> body{buffers.registers, static_cast<const T*>(buffers.noise_pred),
                           buffers.noise,     buffers.state,
                           buffers.rows,      buffers.num_elements,
                           buffers.copies};
  launch(body, buffers.num_elements, stream, "starting finish_step");
  launch(AdvanceBody{buffers.state}, 1, stream, "moving to the next step");
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
  load<FinishBody<T>>();
  load<ScaleBody<T>>();
}

}  // namespace

void load_step_kernels() {
  load_for_type<float>();
  load_for_type<__half>();
  load_for_type<__nv_bfloat16>();
  load<AdvanceBody>();
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
