#pragma once

#include <cstddef>
#include <cstdint>

#include "common/step.h"

namespace sdengine::cpu {

// Applies classifier-free guidance and one sampler step in place:
//   m     = uncond + guidance_scale * (cond - uncond), or noise_pred itself without guidance
//   r'[i] = sum_j A[i,j] r[j] + b[i] m + d[i] noise
//
// registers: [R, num_elements], num_elements being those of one latents batch.
// noise_pred: [2 * num_elements] with guidance, the unconditional half first; else [num_elements].
// noise: [num_elements], or null where d is zero.
// Returns whether every new value is finite.
// Throws std::invalid_argument for more than kMaxRegisters registers.
bool guided_step(float* registers, const float* noise_pred, const float* noise,
                 std::size_t num_elements, bool has_guidance, double guidance_scale,
                 const StepCoefficients& coefficients);

// Writes scale * latents to out, once or `copies` times in a row. Both may be the same memory.
void scale_duplicate(const float* latents, std::size_t num_elements, float scale,
                     std::size_t copies, float* out);

// Turns images [B,3,H,W] of -1 to 1 into pixels [B,H,W,3]; values outside are clamped, halves go
// to the even neighbour. Returns whether every value was finite; pixels of others mean nothing.
bool images_to_uint8(const float* images, std::size_t batch, std::size_t num_pixels,
                     std::uint8_t* out);

// Writes rows of a table [num_rows, width] of fp32, or of fp16 as its bits: out [count, width].
// Returns whether the table has all of them.
bool table_rows(const float* table, std::size_t num_rows, std::size_t width,
                const std::int64_t* rows, std::size_t count, float* out);
bool table_rows(const std::uint16_t* table, std::size_t num_rows, std::size_t width,
                const std::int64_t* rows, std::size_t count, float* out);

}  // namespace sdengine::cpu
