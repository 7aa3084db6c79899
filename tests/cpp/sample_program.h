#pragma once

#include <atomic>
#include <random>
#include <vector>

#include "runtime/program_runner.h"

// A made-up sampler program, and the same trajectory computed in plain double arithmetic.
struct SampleProgram {
  std::size_t K, R;
  std::vector<double> t, c_in, A, b, d;

  SampleProgram(std::size_t steps, std::size_t registers, bool noisy, unsigned seed = 1)
      : K(steps), R(registers), t(K), c_in(K), A(K * R * R), b(K * R), d(K * R) {
    std::mt19937 engine(seed);
    std::uniform_real_distribution<double> uniform(0.1, 0.5);
    // Gains below 1, so that long programs stay bounded.
    for (double& value : A) value = uniform(engine) / static_cast<double>(R);
    for (double& value : b) value = 0.1 * uniform(engine);
    for (double& value : c_in) value = uniform(engine);
    for (std::size_t k = 0; k < K; ++k) {
      t[k] = static_cast<double>(K - k);
      for (std::size_t i = 0; i < R; ++i) d[k * R + i] = noisy && k % 2 == 0 ? uniform(engine) : 0;
    }
  }

  sdengine::runtime::Program view() const {
    return {t.data(), c_in.data(), A.data(), b.data(), d.data(), K, R};
  }

  // What the test networks give for a sample: copy 0 is the unconditional half.
  static double predict(double sample, double timestep, std::size_t copy) {
    return sample * (0.5 + 0.25 * static_cast<double>(copy)) + 0.01 * timestep;
  }

  // Noise of evaluation k: a value of each element and evaluation.
  static float noise_at(std::size_t k, std::size_t e) {
    return static_cast<float>((k * 37 + e * 11) % 17) / 17.0f - 0.5f;
  }

  std::vector<double> expected(const std::vector<float>& initial, std::size_t copies,
                               double guidance_scale) const {
    std::vector<double> result(initial.size());
    for (std::size_t e = 0; e < initial.size(); ++e) {
      std::vector<double> r(R, 0.0);
      r[0] = initial[e];
      std::size_t draws = 0;
      for (std::size_t k = 0; k < K; ++k) {
        const double sample = c_in[k] * r[0];
        double m = predict(sample, t[k], 0);
        if (copies == 2) m += guidance_scale * (predict(sample, t[k], 1) - m);
        const double noise = view().needs_noise(k) ? noise_at(draws++, e) : 0.0;
        std::vector<double> next(R);
        for (std::size_t i = 0; i < R; ++i) {
          next[i] = b[k * R + i] * m + d[k * R + i] * noise;
          for (std::size_t j = 0; j < R; ++j) next[i] += A[(k * R + i) * R + j] * r[j];
        }
        r = next;
      }
      result[e] = r[0];
    }
    return result;
  }
};

// Counts a network's evaluations and cancels in one of them.
struct Evaluations {
  std::atomic<bool>* cancel = nullptr;
  std::size_t num_done = 0;
  std::size_t cancel_in = 0;  // 1 for the first evaluation, 0 for never

  void count() {
    if (++num_done == cancel_in) *cancel = true;
  }
};

// Draws what SampleProgram::expected takes as noise.
inline sdengine::runtime::StepNoise counted_noise(std::size_t num_elements,
                                                  std::size_t& num_draws) {
  return {[num_elements, &num_draws](float* values) {
            for (std::size_t e = 0; e < num_elements; ++e) {
              values[e] = SampleProgram::noise_at(num_draws, e);
            }
            ++num_draws;
          },
          {}};
}

// Runs a program from its first step to its last and writes the last r[0] to latents.
inline void run_program(sdengine::runtime::ProgramRunner& runner, const SampleProgram& program,
                        double guidance_scale, const sdengine::runtime::Denoiser& network,
                        const std::vector<float>& initial,
                        const sdengine::runtime::StepNoise& noise, const std::atomic<bool>& cancel,
                        std::vector<float>& latents) {
  runner.start(program.view(), guidance_scale, initial.data());
  runner.advance(program.view(), 0, program.K, network, noise, cancel);
  runner.read(program.K, latents.data());
}

inline std::vector<float> unit_noise(std::size_t count, unsigned seed = 7) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(engine);
  return values;
}
