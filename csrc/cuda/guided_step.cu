// The step reads R registers, one or two network outputs and the noise once, and writes R
// registers: (2R + 3) * 4 bytes an element, a few MB at most. Neighbouring threads take
// neighbouring elements, so that every access is coalesced; nothing is reused, so there is no
// tiling. Sums are double as on the CPU: the little arithmetic hides behind the memory.

#include <cuda_runtime.h>

#include <iterator>
#include <stdexcept>

#include "common/step.h"
#include "cuda/check.h"

namespace sdengine::cuda {
namespace {

template <int R>
__global__ void guided_step_kernel(float* __restrict__ registers,
                                   const float* __restrict__ noise_pred,
                                   const float* __restrict__ noise, std::size_t num_elements,
                                   bool has_guidance, double guidance_scale,
                                   const double* __restrict__ rows,
                                   const std::int32_t* __restrict__ step,
                                   std::int32_t* __restrict__ not_finite) {
  const std::size_t row = step == nullptr ? 0 : static_cast<std::size_t>(*step);
  const double* const A = rows + row * (R * R + 2 * R);
  const double* const b = A + R * R;
  const double* const d = b + R;
  bool finite = true;
  for (std::size_t e = SDENGINE_FIRST_INDEX; e < num_elements; e += SDENGINE_STRIDE) {
    double guided = noise_pred[e];
    if (has_guidance) {
      guided += guidance_scale * (static_cast<double>(noise_pred[e + num_elements]) - guided);
    }
    const double fresh = noise == nullptr ? 0.0 : static_cast<double>(noise[e]);
    double old[R];
#pragma unroll
    for (int j = 0; j < R; ++j) old[j] = registers[j * num_elements + e];
#pragma unroll
    for (int i = 0; i < R; ++i) {
      double sum = b[i] * guided;
#pragma unroll
      for (int j = 0; j < R; ++j) {
        // A register without weight may hold anything, NaN too.
        if (A[i * R + j] != 0.0) sum += A[i * R + j] * old[j];
      }
      if (d[i] != 0.0) sum += d[i] * fresh;
      const float value = static_cast<float>(sum);
      finite = finite && isfinite(value);
      registers[i * num_elements + e] = value;
    }
  }
  if (!finite) *not_finite = 1;  // all who write write the same
}

template <int R>
void launch(float* registers, const float* noise_pred, const float* noise, std::size_t num_elements,
            bool has_guidance, double guidance_scale, const StepTable& table,
            std::int32_t* not_finite, Stream stream) {
  guided_step_kernel<R><<<blocks_for(num_elements), kThreads, 0, stream_of(stream)>>>(
      registers, noise_pred, noise, num_elements, has_guidance, guidance_scale, table.rows,
      table.step, not_finite);
}

}  // namespace

void guided_step(float* registers, const float* noise_pred, const float* noise,
                 std::size_t num_elements, bool has_guidance, double guidance_scale,
                 const StepTable& table, std::int32_t* not_finite, Stream stream) {
  if (num_elements == 0) return;
  using Launch = decltype(&launch<1>);
  constexpr Launch kLaunches[] = {launch<1>, launch<2>, launch<3>, launch<4>,
                                  launch<5>, launch<6>, launch<7>, launch<8>};
  static_assert(std::size(kLaunches) == kMaxRegisters);
  if (table.num_registers < 1 || table.num_registers > kMaxRegisters) {
    throw std::invalid_argument("num_registers: " + std::to_string(table.num_registers) +
                                " is not accepted; expected 1 to " + std::to_string(kMaxRegisters));
  }
  kLaunches[table.num_registers - 1](registers, noise_pred, noise, num_elements, has_guidance,
                                     guidance_scale, table, not_finite, stream);
  check(cudaGetLastError(), "starting guided_step");
}

}  // namespace sdengine::cuda
