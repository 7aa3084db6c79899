// Capturing a step: what other threads do meanwhile, and what follows where it fails. One test must
// fail where csrc/cuda captures in the global mode; CMakeLists.txt builds it that way too.

#include <thread>

#include "check.h"
#include "cuda/device.h"
#include "network.h"

namespace {

using namespace sdengine::runtime;

constexpr std::size_t kElements = 300;
const GraphKey kKey{"unet", 1, 8, 8, ""};

void check_no_violations() {
  for (const std::string& violation : fake_cuda::violations()) throw check::Failure(violation);
}

struct Server {
  TrajectoryShape shape{kElements, 2, 3, 20, 4, DataType::kFloat32};
  std::shared_ptr<Device> device = sdengine::cuda::make_device(0);
  MemoryPool pool{device, {{"set", trajectory_regions(shape)}}, 0};
  GraphCache graphs{device, 1};
  ProgramRunner runner{pool, "set", shape, graphs, kKey};
  Denoiser network = fake_cuda_network<float>(runner.buffers());
  std::atomic<bool> cancel{false};
  std::vector<float> initial = unit_noise(kElements), latents = std::vector<float>(kElements);
  std::size_t draws = 0;

  void check_result(const SampleProgram& program) {
    const std::vector<double> wanted = program.expected(initial, shape.copies, 3.0);
    for (std::size_t e = 0; e < kElements; ++e) CHECK_NEAR(latents[e], wanted[e], 1e-5);
  }
};

void other_threads_go_on_while_a_step_is_captured() {
  fake_cuda::reset();
  Server server;
  std::vector<float> values(kElements, 1.0f);
  const auto work = [&] {
    const Stream stream = make_stream(server.device);
    const Event event = make_event(server.device);
    const Block block(server.device, kElements * sizeof(float));
    const HostBlock host(server.device, kElements * sizeof(float));
    server.device->upload(block.data(), values.data(), block.size_bytes(), stream.raw());
    server.device->download(host.data(), block.data(), block.size_bytes(), stream.raw());
    server.device->record(event.raw(), stream.raw());
    CHECK(!server.device->is_done(event.raw()));
    server.device->wait_for(event.raw());
    server.device->synchronize(stream.raw());
    CHECK(*reinterpret_cast<const float*>(host.data()) == 1.0f);
  };
  std::string failure;
  server.runner.warm_up([&](RawHandle stream) {
    server.network(stream);
    std::thread([&] {
      try {
        work();
      } catch (const std::exception& error) {
        failure = error.what();
      }
    }).join();
  });
  if (!failure.empty()) throw check::Failure(failure);
  const SampleProgram program(6, 1, true);
  run_program(server.runner, program, 3.0, server.network, server.initial,
              counted_noise(kElements, server.draws), server.cancel, server.latents);
  server.check_result(program);
  check_no_violations();
}

// A graph that the cache dropped is captured again in the middle of a trajectory.
void a_capture_that_fails_in_a_run_does_not_end_it() {
  fake_cuda::reset();
  Server server;
  const SampleProgram program(12, 2, true);
  bool fails = false;
  std::size_t calls = 0;
  const Denoiser network = [&](RawHandle stream) {
    ++calls;
    server.network(stream);
    if (fails) {
      fails = false;
      throw sdengine::DeviceError("unet: not now");
    }
  };
  const StepNoise noise = counted_noise(kElements, server.draws);
  server.runner.start(program.view(), 3.0, server.initial.data());
  server.runner.advance(program.view(), 0, 5, network, noise, server.cancel);
  CHECK(calls == 1 && server.runner.why_not_captured().empty());
  server.graphs.drop(kKey);
  fails = true;
  server.runner.advance(program.view(), 5, 12, network, noise, server.cancel);
  server.runner.read(12, server.latents.data());
  server.check_result(program);
  CHECK(server.runner.why_not_captured() == "unet: not now");
  CHECK(calls == 2 + 7 && fake_cuda::counters().launches == 5);
  // What is no error of the device comes out.
  server.graphs.drop(kKey);
  ProgramRunner another(server.pool, "set", server.shape, server.graphs, kKey);
  another.start(program.view(), 3.0, server.initial.data());
  const Denoiser broken = [](RawHandle) { throw std::logic_error("network"); };
  CHECK_THROWS(std::logic_error,
               another.advance(program.view(), 0, 1, broken, noise, server.cancel));
  check_no_violations();
}

void progress_is_exact_and_does_not_wait() {
  fake_cuda::reset();
  Server server;
  SampleProgram program(12, 2, false);
  Evaluations evaluations;
  const Denoiser network = fake_cuda_network<float>(server.runner.buffers(), &evaluations);
  server.runner.start(program.view(), 3.0, server.initial.data());
  CHECK(server.runner.steps_done() == 0);
  for (std::size_t k = 0; k < 12; ++k) {
    server.runner.advance(program.view(), k, k + 1, network, {}, server.cancel);
    const std::size_t waits = fake_cuda::ledger().waits;
    std::size_t done = 0;
    std::thread([&] { done = server.runner.steps_done(); }).join();
    // Asking lets the fake go on, so an evaluation more may have run by now, but none less.
    CHECK(done <= evaluations.num_done && evaluations.num_done <= done + 1);
    CHECK(done + 2 >= k + 1 && done <= k + 1);
    CHECK(fake_cuda::ledger().waits == waits);
  }
  while (server.runner.steps_done() < 12) {
  }
  CHECK(evaluations.num_done == 12);
  std::vector<float> registers(2 * kElements);
  server.runner.save(2, registers.data());
  server.runner.resume(program.view(), 3.0, registers.data(), 7);
  CHECK(server.runner.steps_done() == 7);
  check_no_violations();
}

}  // namespace

int main() {
  return check::run_all(
      {{"other_threads_go_on_while_a_step_is_captured",
        other_threads_go_on_while_a_step_is_captured},
       {"a_capture_that_fails_in_a_run_does_not_end_it",
        a_capture_that_fails_in_a_run_does_not_end_it},
       {"progress_is_exact_and_does_not_wait", progress_is_exact_and_does_not_wait}});
}
