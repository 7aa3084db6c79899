#include <limits>

#include "check.h"
#include "cpu_network.h"
#include "runtime/errors.h"

namespace {

using namespace sdengine::runtime;
using sdengine::cpu::CpuDevice;

constexpr std::size_t kElements = 300;

struct Fixture {
  TrajectoryShape shape;
  std::shared_ptr<CpuDevice> device = std::make_shared<CpuDevice>();
  MemoryPool pool;
  GraphCache graphs;
  ProgramRunner runner;
  std::size_t recordings = 0;
  Denoiser network;
  std::atomic<bool> cancel{false};
  std::vector<float> initial = unit_noise(kElements);
  std::vector<float> latents = std::vector<float>(kElements);

  explicit Fixture(std::size_t copies = 2)
      : shape{kElements, copies, 3, 60, 4, DataType::kFloat32},
        pool(device, {{"set", trajectory_regions(shape)}}, 0),
        graphs(device, 2),
        runner(pool, "set", shape, graphs, {"unet", 1, 8, 8, ""}),
        network([this, whole = cpu_network(device, runner.buffers())](RawHandle stream) {
          ++recordings;
          whole(stream);
        }) {}

  void run(const SampleProgram& program, double guidance_scale = 7.5) {
    std::size_t draws = 0;
    run_program(runner, program, guidance_scale, network, initial, counted_noise(kElements, draws),
                cancel, latents);
  }

  void check_result(const SampleProgram& program, double guidance_scale = 7.5) {
    const std::vector<double> wanted = program.expected(initial, shape.copies, guidance_scale);
    for (std::size_t e = 0; e < kElements; ++e) {
      CHECK_NEAR(latents[e], wanted[e], 1e-5 * (1 + std::fabs(wanted[e])));
    }
  }
};

void matches_the_formula_with_one_graph() {
  for (const std::size_t copies : {1, 2}) {
    Fixture f(copies);
    for (const std::size_t R : {1, 2, 4}) {
      for (const std::size_t K : {1, 2, 3, 60}) {
        for (const bool noisy : {false, true}) {
          const SampleProgram program(K, R, noisy, static_cast<unsigned>(K * R));
          f.run(program, 3.0);
          f.check_result(program, 3.0);
        }
      }
    }
    // Every sampler, length and guidance scale went through the same capture.
    CHECK(f.recordings == 1);
    CHECK(f.device->num_allocations() == 1);
  }
}

void every_timestep_value_is_written() {
  Fixture f;
  f.run(SampleProgram(5, 1, false));
  for (std::size_t i = 0; i < 3; ++i) CHECK(f.runner.buffers().timestep[i] == 1.0f);
}

void warms_up_without_running() {
  Fixture f;
  f.runner.warm_up(f.network);
  CHECK(f.recordings == 1);
  f.run(SampleProgram(4, 1, false));
  CHECK(f.recordings == 1);
}

void cancels_in_the_middle_and_runs_again() {
  Fixture f;
  const Denoiser whole = f.network;
  int evaluations = 0;
  f.network = [&](RawHandle stream) {
    whole(stream);
    f.device->enqueue(
        [&] {
          if (++evaluations == 10) f.cancel = true;
        },
        stream);
  };
  const SampleProgram program(30, 2, true);
  CHECK_THROWS(Cancelled, f.run(program));
  CHECK(evaluations == 10);
  f.cancel = false;
  f.run(program);
  f.check_result(program);
}

void names_the_evaluation_that_is_not_finite() {
  Fixture f;
  SampleProgram program(9, 2, false);
  const SampleProgram sound = program;
  program.b[4 * 2] = std::numeric_limits<double>::infinity();
  try {
    f.run(program);
    CHECK(false);
  } catch (const sdengine::NonFiniteError& error) {
    CHECK(std::string(error.what()).find("evaluation 5 of 9") != std::string::npos);
  }
  f.run(sound);
  f.check_result(sound);
}

void passes_on_what_networks_and_noise_throw() {
  Fixture f;
  const SampleProgram program(6, 1, true);
  bool fails = true;
  const Denoiser whole = f.network;
  f.network = [&](RawHandle stream) {
    f.device->enqueue(
        [&] {
          if (fails) throw std::logic_error("network");
        },
        stream);
    whole(stream);
  };
  CHECK_THROWS(std::logic_error, f.run(program));
  fails = false;
  const StepNoise no_noise = {[](float*) { throw std::logic_error("noise"); }, {}};
  CHECK_THROWS(std::logic_error, run_program(f.runner, program, 1.0, f.network, f.initial, no_noise,
                                             f.cancel, f.latents));
  f.run(program);
  f.check_result(program);
}

void refuses_what_does_not_fit() {
  Fixture f;
  CHECK_THROWS(std::invalid_argument, f.run(SampleProgram(61, 1, false)));
  CHECK_THROWS(std::invalid_argument, f.run(SampleProgram(5, 5, false)));
  CHECK_THROWS(std::invalid_argument, f.run(SampleProgram(0, 1, false)));
  TrajectoryShape larger = f.shape;
  larger.num_elements *= 2;
  CHECK_THROWS(std::invalid_argument, ProgramRunner(f.pool, "set", larger, f.graphs, {}));
  CHECK_THROWS(std::invalid_argument, ProgramRunner(f.pool, "other", f.shape, f.graphs, {}));
  for (const TrajectoryShape bad : {TrajectoryShape{0, 1, 1, 1, 1, DataType::kFloat32},
                                    TrajectoryShape{SIZE_MAX, 1, 1, 1, 1, DataType::kFloat32},
                                    TrajectoryShape{1, 3, 1, 1, 1, DataType::kFloat32},
                                    TrajectoryShape{1, 1, 0, 1, 1, DataType::kFloat32},
                                    TrajectoryShape{1, 1, 1, 0, 1, DataType::kFloat32},
                                    TrajectoryShape{1, 1, 1, 1, 9, DataType::kFloat32}}) {
    CHECK_THROWS(std::invalid_argument, trajectory_regions(bad));
  }
}

}  // namespace

int main() {
  return check::run_all(
      {{"matches_the_formula_with_one_graph", matches_the_formula_with_one_graph},
       {"every_timestep_value_is_written", every_timestep_value_is_written},
       {"warms_up_without_running", warms_up_without_running},
       {"cancels_in_the_middle_and_runs_again", cancels_in_the_middle_and_runs_again},
       {"names_the_evaluation_that_is_not_finite", names_the_evaluation_that_is_not_finite},
       {"passes_on_what_networks_and_noise_throw", passes_on_what_networks_and_noise_throw},
       {"refuses_what_does_not_fit", refuses_what_does_not_fit}});
}
