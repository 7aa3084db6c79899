#include "cpu/network_steps.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "cpu/kernels.h"

namespace sdengine::cpu {

StepsRun run_steps(nn::Network& network, const StepMaps& maps, const runtime::Program& program,
                   std::size_t first, std::size_t end, double guidance_scale, float* registers,
                   float* noise, const std::function<void(float*)>& draw,
                   const std::function<void()>& between) {
  using Clock = std::chrono::steady_clock;
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
    done.network_ns +=
        std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - started).count();
    const StepCoefficients row{program.A + k * R * R, program.b + k * R, program.d + k * R, R};
    done.finite = guided_step(registers, maps.noise_pred, needs_noise ? noise : nullptr,
                              maps.num_elements, maps.copies == 2, guidance_scale, row);
    ++done.count;
  }
  return done;
}

}  // namespace sdengine::cpu
