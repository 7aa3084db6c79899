// Moves each value once and computes next to nothing. Neighbouring threads read neighbouring
// values; the three bytes of a pixel are written by one thread, so that a warp's writes fill whole
// 32-byte sectors.

#include "cuda/numbers.h"
#include "cuda/step_kernels.h"

namespace sdengine::cuda {
namespace {

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
             std::int32_t* not_finite, cudaStream_t stream) {
  const PixelBody<T> body{static_cast<const T*>(images), num_pixels, out, not_finite};
  launch(body, batch * num_pixels, stream, "starting to_pixels");
}

}  // namespace

void load_pixel_kernels() {
  load<PixelBody<float>>();
  load<PixelBody<__half>>();
  load<PixelBody<__nv_bfloat16>>();
}

void to_pixels(const void* images, runtime::DataType type, std::size_t batch,
               std::size_t num_pixels, std::uint8_t* out, std::int32_t* not_finite,
               cudaStream_t stream) {
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
