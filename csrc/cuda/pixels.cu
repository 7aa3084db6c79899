// Both kernels move each value once and compute next to nothing. Neighbouring threads read
// neighbouring values; the three bytes of a pixel are written by one thread, so that a warp's
// writes fill whole 32-byte sectors.

#include <cuda_runtime.h>

#include "cuda/check.h"

namespace sdengine::cuda {
namespace {

__global__ void scale_duplicate_kernel(const float* __restrict__ latents, std::size_t num_elements,
                                       const double* __restrict__ scales,
                                       const std::int32_t* __restrict__ step, std::size_t copies,
                                       float* __restrict__ out) {
  const float scale = static_cast<float>(scales[step == nullptr ? 0 : *step]);
  for (std::size_t e = SDENGINE_FIRST_INDEX; e < num_elements; e += SDENGINE_STRIDE) {
    const float value = scale * latents[e];
    for (std::size_t copy = 0; copy < copies; ++copy) out[copy * num_elements + e] = value;
  }
}

__global__ void images_to_uint8_kernel(const float* __restrict__ images, std::size_t batch,
                                       std::size_t num_pixels, std::uint8_t* __restrict__ out,
                                       std::int32_t* __restrict__ not_finite) {
  bool finite = true;
  const std::size_t total = batch * num_pixels;
  for (std::size_t p = SDENGINE_FIRST_INDEX; p < total; p += SDENGINE_STRIDE) {
    const float* const source = images + p / num_pixels * 3 * num_pixels + p % num_pixels;
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
      const float value = source[channel * num_pixels];
      finite = finite && isfinite(value);
      // Separate operations, as the CPU does them; __saturatef clamps and makes 0 of NaN.
      const float unit = __saturatef(__fadd_rn(__fmul_rn(value, 0.5f), 0.5f));
      out[p * 3 + channel] = static_cast<std::uint8_t>(__float2uint_rn(__fmul_rn(unit, 255.0f)));
    }
  }
  if (!finite) *not_finite = 1;
}

}  // namespace

void scale_duplicate(const float* latents, std::size_t num_elements, const double* scales,
                     const std::int32_t* step, std::size_t copies, float* out, Stream stream) {
  if (num_elements == 0) return;
  scale_duplicate_kernel<<<blocks_for(num_elements), kThreads, 0, stream_of(stream)>>>(
      latents, num_elements, scales, step, copies, out);
  check(cudaGetLastError(), "starting scale_duplicate");
}

void images_to_uint8(const float* images, std::size_t batch, std::size_t num_pixels,
                     std::uint8_t* out, std::int32_t* not_finite, Stream stream) {
  if (batch * num_pixels == 0) return;
  images_to_uint8_kernel<<<blocks_for(batch * num_pixels), kThreads, 0, stream_of(stream)>>>(
      images, batch, num_pixels, out, not_finite);
  check(cudaGetLastError(), "starting images_to_uint8");
}

}  // namespace sdengine::cuda
