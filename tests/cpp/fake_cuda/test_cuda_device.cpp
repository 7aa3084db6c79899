// csrc/cuda itself, run on the fake.

#include <algorithm>

#include "check.h"
#include "cuda/device.h"
#include "cuda/info.h"
#include "network.h"
#include "runtime/errors.h"

namespace {

using namespace sdengine::runtime;

constexpr std::size_t kElements = 300;

void check_no_violations() {
  for (const std::string& violation : fake_cuda::violations()) throw check::Failure(violation);
}

template <typename T>
struct Server {
  TrajectoryShape shape;
  std::shared_ptr<Device> device = sdengine::cuda::make_device(0);
  MemoryPool pool;
  GraphCache graphs{device, 1};
  ProgramRunner runner;
  std::atomic<bool> cancel{false};
  std::size_t recordings = 0;
  Evaluations evaluations;
  Denoiser network;
  std::vector<float> initial = unit_noise(kElements), latents = std::vector<float>(kElements);

  explicit Server(DataType type, std::size_t copies = 2)
      : shape{kElements, copies, 3, 20, 4, type},
        pool(device, {{"set", trajectory_regions(shape)}}, 0),
        runner(pool, "set", shape, graphs, {"unet", 1, 8, 8, ""}),
        network(
            [this, whole = fake_cuda_network<T>(runner.buffers(), &evaluations)](RawHandle stream) {
              ++recordings;
              whole(stream);
            }) {
    evaluations.cancel = &cancel;
  }

  void run(const SampleProgram& program) {
    std::size_t draws = 0;
    evaluations.num_done = 0;
    cancel = false;
    run_program(runner, program, 3.0, network, initial, counted_noise(kElements, draws), cancel,
                latents);
  }

  void check_result(const SampleProgram& program, double tolerance) {
    const std::vector<double> wanted = program.expected(initial, shape.copies, 3.0);
    for (std::size_t e = 0; e < kElements; ++e) {
      CHECK_NEAR(latents[e], wanted[e], tolerance * (1 + std::fabs(wanted[e])));
    }
  }
};

template <typename T>
void check_type(DataType type, double tolerance) {
  fake_cuda::reset();
  for (const std::size_t copies : {1, 2}) {
    Server<T> server(type, copies);
    for (const std::size_t R : {1, 2, 4}) {
      for (const std::size_t K : {1, 2, 3, 20}) {
        const SampleProgram program(K, R, true, static_cast<unsigned>(K * R));
        server.run(program);
        server.check_result(program, tolerance);
      }
    }
    CHECK(server.recordings == 1);
    CHECK(fake_cuda::counters().live_blocks == 1);
  }
  check_no_violations();
}

// The network's input and output are rounded to the type: units of 2^-11 and 2^-8, times the
// guidance that amplifies them.
void runs_programs_in_fp32() { check_type<float>(DataType::kFloat32, 1e-5); }
void runs_programs_in_fp16() { check_type<__half>(DataType::kFloat16, 2e-3); }
void runs_programs_in_bf16() { check_type<__nv_bfloat16>(DataType::kBFloat16, 1.6e-2); }

void a_step_is_one_launch() {
  fake_cuda::reset();
  Server<float> server(DataType::kFloat32);
  server.run(SampleProgram(15, 2, true));
  CHECK(fake_cuda::counters().launches == 15);
}

void cancels_with_two_steps_in_the_queue_at_most() {
  fake_cuda::reset();
  Server<float> server(DataType::kFloat32);
  SampleProgram program(20, 2, true);
  // Noise in every step keeps the fake behind: a step's graph still waits when it is asked for.
  std::fill(program.d.begin(), program.d.end(), 0.3);
  server.evaluations.cancel_in = 5;
  CHECK_THROWS(Cancelled, server.run(program));
  CHECK(fake_cuda::counters().launches > 5 && fake_cuda::counters().launches <= 7);
  // All that was queued has run: the buffers are free for what comes next.
  CHECK(server.evaluations.num_done == fake_cuda::counters().launches);
  server.evaluations.cancel_in = 0;
  server.run(program);
  server.check_result(program, 1e-5);
  check_no_violations();
}

void names_the_evaluation_that_is_not_finite() {
  fake_cuda::reset();
  Server<__half> server(DataType::kFloat16);
  SampleProgram program(9, 1, false);
  program.c_in[3] = 1e6;  // beyond fp16
  try {
    server.run(program);
    CHECK(false);
  } catch (const sdengine::NonFiniteError& error) {
    CHECK(std::string(error.what()).find("evaluation 4 of 9") != std::string::npos);
  }
}

void a_running_graph_survives_its_eviction() {
  fake_cuda::reset();
  const auto device = sdengine::cuda::make_device(0);
  const Stream stream = make_stream(device);
  int ran = 0;
  {
    GraphCache graphs(device, 1);
    const auto record = [&](RawHandle target) {
      fake_cuda::launch_kernel(reinterpret_cast<cudaStream_t>(target), [&] { ++ran; });
    };
    // Asking for an event lets the fake go on by one piece of work: this one, not the graph.
    fake_cuda::launch_kernel(reinterpret_cast<cudaStream_t>(stream.raw()), [] {});
    graphs.launch({"a", 1, 8, 8, ""}, stream.raw(), record);
    graphs.launch({"b", 1, 8, 8, ""}, stream.raw(), record);
    CHECK(ran == 0);
    CHECK(fake_cuda::counters().live_graphs == 2);
    device->synchronize(stream.raw());
    graphs.launch({"c", 1, 8, 8, ""}, stream.raw(), record);
    CHECK(ran == 2 && fake_cuda::counters().live_graphs == 1);
  }
  CHECK(ran == 3 && fake_cuda::counters().live_graphs == 0);
  check_no_violations();
}

void a_failed_capture_leaves_the_stream_usable() {
  fake_cuda::reset();
  const auto device = sdengine::cuda::make_device(0);
  GraphCache graphs(device, 1);
  const GraphKey key{"a", 1, 8, 8, ""};
  const auto failing = [](RawHandle) { throw std::logic_error("network"); };
  CHECK_THROWS(std::logic_error, graphs.warm_up(key, failing));
  check_no_violations();
  const auto allocating = [&](RawHandle) { const Block block(device, 16); };
  CHECK_THROWS(sdengine::DeviceError, graphs.warm_up(key, allocating));
  const auto nothing = [](RawHandle) {};
  graphs.warm_up(key, nothing);
  CHECK(fake_cuda::counters().live_graphs == 1);
}

void memory_errors_carry_their_numbers() {
  fake_cuda::reset(10000);
  const auto device = sdengine::cuda::make_device(0);
  const Block block(device, 6000);
  try {
    const Block more(device, 5000);
    CHECK(false);
  } catch (const MemoryBudgetError& error) {
    CHECK(error.requested_bytes == 5000 && error.available_bytes == 4000);
  }
  // The refused allocation is not blamed on the next launch.
  const Stream stream = make_stream(device);
  device->fill(block.data(), 1, 6000, stream.raw());
  StepState state{};
  StepBuffers buffers{};
  buffers.state = &state;
  device->finish_step(buffers, stream.raw());
  device->synchronize(stream.raw());
  CHECK(device->memory_info().free_bytes == 4000 && state.row == 1);
  CHECK_THROWS(sdengine::DeviceError, sdengine::cuda::make_device(1));
}

void buffers_copy_and_refuse() {
  fake_cuda::reset(1000);
  {
    sdengine::cuda::Buffer buffer(8, 0);
    const double sent = 2.5;
    double received = 0;
    buffer.upload(&sent, sizeof sent);
    buffer.download(&received, sizeof received);
    CHECK(received == sent);
    CHECK_THROWS(std::invalid_argument, buffer.upload(&sent, 9));
    CHECK_THROWS(sdengine::OutOfMemoryError, sdengine::cuda::Buffer(993, 0));
    CHECK(cudaGetLastError() == cudaSuccess);  // or the next launch would be blamed for it
  }
  CHECK(fake_cuda::counters().live_blocks == 0);
  CHECK(sdengine::cuda::available(0).usable);
  check_no_violations();
}

}  // namespace

int main() {
  return check::run_all(
      {{"runs_programs_in_fp32", runs_programs_in_fp32},
       {"runs_programs_in_fp16", runs_programs_in_fp16},
       {"runs_programs_in_bf16", runs_programs_in_bf16},
       {"a_step_is_one_launch", a_step_is_one_launch},
       {"cancels_with_two_steps_in_the_queue_at_most", cancels_with_two_steps_in_the_queue_at_most},
       {"names_the_evaluation_that_is_not_finite", names_the_evaluation_that_is_not_finite},
       {"a_running_graph_survives_its_eviction", a_running_graph_survives_its_eviction},
       {"a_failed_capture_leaves_the_stream_usable", a_failed_capture_leaves_the_stream_usable},
       {"memory_errors_carry_their_numbers", memory_errors_carry_their_numbers},
       {"buffers_copy_and_refuse", buffers_copy_and_refuse}});
}
