// The step moves (2R + 3) latents through memory once. It works on blocks that stay in the L1
// cache and sums in double, so that only the registers' own rounding is lost.

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/finite.h"
#include "cpu/kernels.h"

namespace sdengine::cpu {
namespace {

constexpr std::size_t kBlock = 256;

void guide(const float* noise_pred, std::size_t offset, std::size_t count, std::size_t num_elements,
           bool has_guidance, double guidance_scale, double* guided) {
  const float* first = noise_pred + offset;
  if (!has_guidance) {
    std::copy(first, first + count, guided);
    return;
  }
  const float* cond = first + num_elements;
  for (std::size_t e = 0; e < count; ++e) {
    const double uncond = first[e];
    guided[e] = uncond + guidance_scale * (static_cast<double>(cond[e]) - uncond);
  }
}

void add_scaled(const float* values, double factor, std::size_t count, double* sum) {
  if (factor == 0.0) return;
  for (std::size_t e = 0; e < count; ++e) sum[e] += factor * static_cast<double>(values[e]);
}

}  // namespace

bool guided_step(float* registers, const float* noise_pred, const float* noise,
                 std::size_t num_elements, bool has_guidance, double guidance_scale,
                 const StepCoefficients& coefficients) {
  const std::size_t R = coefficients.num_registers;
  if (R > kMaxRegisters) {
    throw std::invalid_argument("registers: " + std::to_string(R) + " of them; at most " +
                                std::to_string(kMaxRegisters) + " are supported");
  }
  double guided[kBlock];
  double sums[kMaxRegisters][kBlock];
  std::uint32_t not_finite = 0;
  for (std::size_t offset = 0; offset < num_elements; offset += kBlock) {
    const std::size_t count = std::min(kBlock, num_elements - offset);
    guide(noise_pred, offset, count, num_elements, has_guidance, guidance_scale, guided);
    for (std::size_t i = 0; i < R; ++i) {
      double* sum = sums[i];
      const double b = coefficients.b[i];
      for (std::size_t e = 0; e < count; ++e) sum[e] = b * guided[e];
      for (std::size_t j = 0; j < R; ++j) {
        add_scaled(registers + j * num_elements + offset, coefficients.A[i * R + j], count, sum);
      }
      if (noise != nullptr) add_scaled(noise + offset, coefficients.d[i], count, sum);
    }
    for (std::size_t i = 0; i < R; ++i) {
      float* out = registers + i * num_elements + offset;
      for (std::size_t e = 0; e < count; ++e) {
        out[e] = static_cast<float>(sums[i][e]);
        not_finite |= is_not_finite(out[e]);
      }
    }
  }
  return not_finite == 0;
}

}  // namespace sdengine::cpu
