#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "nn/network.h"
#include "runtime/step_table.h"

namespace sdengine::cpu {

// What a network reads besides sample and timestep. It is copied before each run: the memory of an
// input is used again for what the network computes.
struct InputCopy {
  char* to;
  const char* from;
  std::size_t bytes;
};

// A network's own memory as sampler steps see it.
struct StepMaps {
  std::vector<InputCopy> inputs;
  float* sample;            // [copies, num_elements]
  float* timestep;          // [num_timesteps]
  const float* noise_pred;  // [copies, num_elements], the unconditional half first
  std::size_t num_elements, copies, num_timesteps;
};

struct StepsRun {
  std::size_t count = 0;        // evaluations, or images, that ran
  bool finite = true;           // of the last one
  std::int64_t network_ns = 0;  // inside the network, its inputs' copies included
};

// Runs the evaluations `first` to `end` - 1 of a program, up to the first that gives NaN or
// infinity.
//
// registers: [R, num_elements]. noise: [num_elements], overwritten. draw: gives the next noise.
// between: called before each evaluation; what it throws ends the run.
StepsRun run_steps(nn::Network& network, const StepMaps& maps, const runtime::Program& program,
                   std::size_t first, std::size_t end, double guidance_scale, float* registers,
                   float* noise, const std::function<void(float*)>& draw,
                   const std::function<void()>& between);

// A decoder's own memory.
struct DecoderMaps {
  float* latents;       // [num_elements]
  const float* images;  // [3, num_pixels]
  std::size_t num_elements, num_pixels;
};

// Decodes latents [batch, num_elements], multiplied by `scale`, to pixels [batch, num_pixels, 3],
// up to the first image that has NaN or infinity; `count` is of images. between: as for run_steps.
StepsRun run_decoder(nn::Network& network, const DecoderMaps& maps, const float* latents,
                     std::size_t batch, float scale, std::uint8_t* pixels,
                     const std::function<void()>& between);

}  // namespace sdengine::cpu
