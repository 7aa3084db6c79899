// The kernels of csrc/cuda/pixels.cu against those of the CPU.

#include <limits>

#include "check.h"
#include "cpu/kernels.h"
#include "cuda/numbers.h"
#include "cuda/step_kernels.h"
#include "fake_cuda.h"
#include "sample_program.h"

namespace {

namespace cuda = sdengine::cuda;
using sdengine::runtime::DataType;

constexpr std::size_t kBatch = 2, kPixels = 700;

struct Queue {
  cudaStream_t stream = nullptr;
  Queue() {
    fake_cuda::reset();
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  }
  ~Queue() { cudaStreamDestroy(stream); }
};

// Kernels of the fake read host memory as well as its own.
template <typename T>
void check_levels(DataType type) {
  const Queue queue;
  std::vector<float> images = unit_noise(kBatch * 3 * kPixels);
  // Levels exactly between two, and the ends.
  for (std::size_t i = 0; i < 510; ++i) images[i] = static_cast<float>(i) / 255.0f - 1.0f;
  std::vector<T> given;
  for (float& image : images) {
    given.push_back(cuda::from_float<T>(image));
    image = cuda::to_float(given.back());
  }
  std::vector<std::uint8_t> pixels(images.size()), wanted(images.size());
  std::int32_t not_finite = 0;
  cuda::to_pixels(given.data(), type, kBatch, kPixels, pixels.data(), &not_finite, queue.stream);
  cudaStreamSynchronize(queue.stream);
  CHECK(sdengine::cpu::images_to_uint8(images.data(), kBatch, kPixels, wanted.data()));
  CHECK(pixels == wanted && not_finite == 0);

  given[kPixels] = cuda::from_float<T>(std::numeric_limits<float>::quiet_NaN());
  cuda::to_pixels(given.data(), type, kBatch, kPixels, pixels.data(), &not_finite, queue.stream);
  cudaStreamSynchronize(queue.stream);
  CHECK(not_finite == 1 && pixels[1] == 0);
}

void fp32_images_equal_the_cpus() { check_levels<float>(DataType::kFloat32); }
void fp16_images_equal_the_cpus() { check_levels<__half>(DataType::kFloat16); }
void bf16_images_equal_the_cpus() { check_levels<__nv_bfloat16>(DataType::kBFloat16); }

// Of the fake's own conversions, which all checks above lean on.
void halves_round_as_the_formats_say() {
  CHECK(__float2half(1.0f).bits == 0x3c00 && __float2half(-2.0f).bits == 0xc000);
  CHECK(__float2half(65504.0f).bits == 0x7bff && __float2half(65520.0f).bits == 0x7c00);
  CHECK(__float2half(1.0f + 0x1p-11f).bits == 0x3c00);
  CHECK(__float2half(1.0f + 3 * 0x1p-11f).bits == 0x3c02);
  CHECK(__float2half(0x1p-24f).bits == 1 && __float2half(0x1p-25f).bits == 0);
  CHECK(__float2half(0x1p-14f).bits == 0x0400 && __float2half(1.99999f).bits == 0x4000);
  for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {
    CHECK(__float2half(__half2float({static_cast<std::uint16_t>(bits)})).bits == bits);
  }
  CHECK(__float2bfloat16(1.0f).bits == 0x3f80 && __float2bfloat16(1.0f + 0x1p-8f).bits == 0x3f80);
  CHECK(__float2bfloat16(1.0f + 3 * 0x1p-8f).bits == 0x3f82);
  CHECK(__bfloat162float({0xc040}) == -3.0f);
}

}  // namespace

int main() {
  return check::run_all({{"fp32_images_equal_the_cpus", fp32_images_equal_the_cpus},
                         {"fp16_images_equal_the_cpus", fp16_images_equal_the_cpus},
                         {"bf16_images_equal_the_cpus", bf16_images_equal_the_cpus},
                         {"halves_round_as_the_formats_say", halves_round_as_the_formats_say}});
}
