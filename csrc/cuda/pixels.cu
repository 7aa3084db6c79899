// Both kernels move each value once and compute next to nothing. Neighbouring threads read
// neighbouring values; the three bytes of a pixel are written by one thread, so that a warp's
// writes fill whole 32-byte sectors.

#include "cuda/numbers.h"

namespace sdengine::cuda {
namespace {

struct ScaleDuplicateBody {
  const float* latents;
  std::size_t num_elements;
  const double* scales;
  const std::int32_t* step;
  std::size_t copies;
  float* out;

  SDENGINE_BODY void operator()(std::size_t e) const {
    const float value = static_cast<float>(scales[step == nullptr ? 0 : *step]) * latents[e];
    for (std::size_t copy = 0; copy < copies; ++copy) out[copy * num_elements + e] = value;
  }
};

// The CPU's levels to the bit: halving is exact, so a fused multiply-add changes nothing.
SDENGINE_BODY std::uint8_t to_level(float value) {
  // Written so that NaN becomes 0.
  float unit = value * 0.5f + 0.5f;
  unit = unit > 0.0f ? unit : 0.0f;
  unit = unit < 1.0f ? unit : 1.0f;
  return static_cast<std::uint8_t>(rintf(unit * 255.0f));
}

template <typename T>
struct PixelBody {
  const T* images;
  std::size_t num_pixels;
  std::uint8_t* out;
  std::int32_t* not_finite;

  SDENGINE_BODY void operator()(std::size_t p) const {
    const T* const source = images + p / num_pixels * 3 * num_pixels + p % num_pixels;
    bool finite = true;
    for (int channel = 0; channel < 3; ++channel) {
      const float value = to_float(source[static_cast<std::size_t>(channel) * num_pixels]);
      finite = finite && is_finite(value);
      out[p * 3 + static_cast<std::size_t>(channel)] = to_level(value);
    }
    if (!finite) *not_finite = 1;  // all who write write the same
  }
};

template <typename T>
void convert(const void* images, std::size_t batch, std::size_t num_pixels, std::uint8_t* out,
             std::int32_t* not_finite, Stream stream) {
  const PixelBody<T> body{static_cast<const T*>(images), num_pixels, out, not_finite};
  launch(body, batch * num_pixels, stream_of(stream), "starting images_to_uint8");
}

}  // namespace

void scale_duplicate(const float* latents, std::size_t num_elements, const double* scales,
                     const std::int32_t* step, std::size_t copies, float* out, Stream stream) {
  const ScaleDuplicateBody body{latents, num_elements, scales, step, copies, out};
  launch(body, num_elements, stream_of(stream), "starting scale_duplicate");
}

void images_to_uint8(const float* images, std::size_t batch, std::size_t num_pixels,
                     std::uint8_t* out, std::int32_t* not_finite, Stream stream) {
  convert<float>(images, batch, num_pixels, out, not_finite, stream);
}

void images_to_uint8(const void* images, runtime::DataType type, std::size_t batch,
                     std::size_t num_pixels, std::uint8_t* out, std::int32_t* not_finite,
                     Stream stream) {
  switch (type) {
    case runtime::DataType::kFloat32:
      return convert<float>(images, batch, num_pixels, out, not_finite, stream);
    case runtime::DataType::kFloat16:
      return convert<__half>(images, batch, num_pixels, out, not_finite, stream);
    case runtime::DataType::kBFloat16:
      return convert<__nv_bfloat16>(images, batch, num_pixels, out, not_finite, stream);
  }
}

}  // namespace sdengine::cuda
