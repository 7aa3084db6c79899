// One value a thread, 4 bytes written and nothing read: about 120 integer and 60 floating point
// operations each, so that the latents of an image take microseconds. Compiled without fused
// multiply-add: the values are those of the CPU to the bit.

#include "common/philox.h"
#include "cuda/launch.h"
#include "cuda/step_kernels.h"

namespace sdengine::cuda {
namespace {

struct PhiloxBody {
  std::uint64_t seed;
  std::uint32_t number;
  float* out;

  SDENGINE_BODY void operator()(std::size_t e) const {
    const philox::Words words = philox::words_at(seed, number, e);
    out[e] = philox::normal_of(words.word[0], words.word[1]);
  }
};

}  // namespace

void load_noise_kernels() { load<PhiloxBody>(); }

void draw_philox(std::uint64_t seed, std::uint32_t number, float* out, std::size_t count,
                 cudaStream_t stream) {
  launch(PhiloxBody{seed, number, out}, count, stream, "starting draw_philox");
}

}  // namespace sdengine::cuda
