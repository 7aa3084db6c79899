#include "cpu/network_steps.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "cpu/kernels.h"

namespace sdengine::cpu {
namespace {

using Clock = std::chrono::steady_clock;

std::int64_t ns_since(Clock::time_point started) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - started).count();
}

}  // namespace

StepsRun run_steps(nn::Network& network, const StepMaps& maps, const runtime::Program& program,
                   std::size_t first, std::size_t end, double guidance_scale, float* registers,
                   float* noise, const std::function<void(float*)>& draw,
                   const std::function<void()>& between) {
  const std::size_t R = program.num_registers;
  StepsRun done;
  for (std::size_t k = first; k < end && done.finite; ++k) {
    between();
    const bool needs_noise = program.needs_noise(k);
    if (needs_noise) draw(noise);
    scale_duplicate(registers, maps.num_elements, static_cast<float>(program.c_in[k]), maps.copies,
                    maps.sample);
    std::fill_n(maps.timestep, maps.num_timesteps, static_cast<float>(program.t[k]));
    const Clock::time_point started = Clock::now();
    for (const InputCopy& input : maps.inputs) std::memcpy(input.to, input.from, input.bytes);
    network.run();
    done.network_ns += ns_since(started);
    const StepCoefficients row{program.A + k * R * R, program.b + k * R, program.d + k * R, R};
    done.finite = guided_step(registers, maps.noise_pred, needs_noise ? noise : nullptr,
                              maps.num_elements, maps.copies == 2, guidance_scale, row);
    ++done.count;
  }
  return done;
}

StepsRun run_decoder(nn::Network& network, const DecoderMaps& maps, const float* latents,
                     std::size_t batch, float scale, std::uint8_t* pixels,
                     const std::function<void()>& between) {
  StepsRun done;
  for (std::size_t n = 0; n < batch && done.finite; ++n) {
    between();
    scale_duplicate(latents + n * maps.num_elements, maps.num_elements, scale, 1, maps.latents);
    const Clock::time_point started = Clock::now();
    network.run();
    done.network_ns += ns_since(started);
    done.finite =
        images_to_uint8(maps.images, 1, maps.num_pixels, pixels + n * maps.num_pixels * 3);
    ++done.count;
  }
  return done;
}

}  // namespace sdengine::cpu
