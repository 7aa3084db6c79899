// A GPU that failed for good: it stays lost for as long as the process lives, so it has this
// process to itself.

#include "check.h"
#include "cuda/device.h"
#include "cuda/info.h"
#include "network.h"

namespace {

using namespace sdengine::runtime;
namespace cuda = sdengine::cuda;

constexpr std::size_t kElements = 300;

struct Server {
  TrajectoryShape shape{kElements, 1, 3, 20, 4, DataType::kFloat32};
  std::shared_ptr<Device> device;
  MemoryPool pool{device, {{"set", trajectory_regions(shape)}}, 0};
  GraphCache graphs{device, 1};
  ProgramRunner runner{pool, "set", shape, graphs, {"unet", 1, 8, 8, ""}};
  Denoiser network = fake_cuda_network<float>(runner.buffers());
  std::atomic<bool> cancel{false};

  explicit Server(int index) : device(cuda::make_device(index)) {}

  // What a request answers: nothing when it succeeds.
  std::string serve() {
    std::vector<float> latents(kElements);
    std::size_t draws = 0;
    try {
      run_program(runner, SampleProgram(5, 1, true), 3.0, network, unit_noise(kElements),
                  counted_noise(kElements, draws), cancel, latents);
    } catch (const sdengine::DeviceLostError& error) {
      return error.what();
    }
    return "";
  }
};

// What the network says of its own failure matters less than that the GPU is gone.
void what_fails_beside_a_lost_gpu_names_the_loss() {
  fake_cuda::reset({{90}, {90}, {90}});
  Server server(2);
  CHECK(server.serve().empty());
  const Denoiser whole = server.network;
  server.graphs.drop({"unet", 1, 8, 8, ""});
  ProgramRunner plain(server.pool, "set", server.shape, server.graphs, {}, Launch::kPlain);
  const Denoiser failing = [](RawHandle stream) {
    fake_cuda::fault_next_kernel();
    fake_cuda::launch_kernel(reinterpret_cast<cudaStream_t>(stream), [] {});
    throw sdengine::DeviceError("unet: the engine did not run");
  };
  const SampleProgram program(5, 1, false);
  plain.start(program.view(), 1.0, unit_noise(kElements).data());
  CHECK_THROWS(sdengine::DeviceLostError,
               plain.advance(program.view(), 0, 5, failing, {}, server.cancel));
}

void every_later_request_answers_the_same() {
  fake_cuda::reset({{90}, {90}});
  Server lost(1), other(0);
  CHECK(lost.serve().empty() && other.serve().empty());
  fake_cuda::fault_next_kernel();
  const std::string first = lost.serve();
  CHECK(first.find("cudaErrorIllegalAddress") != std::string::npos);
  CHECK(first.find("cannot use GPU 1 any more: restart the process") != std::string::npos);
  for (int request = 0; request < 3; ++request) CHECK(lost.serve() == first);
  const auto answers_the_same = [&](const std::function<void()>& call) {
    try {
      call();
    } catch (const sdengine::DeviceLostError& error) {
      return error.what() == first;
    }
    return false;
  };
  CHECK(answers_the_same([&] { lost.device->allocate(16); }));
  CHECK(answers_the_same([&] { lost.device->memory_info(); }));
  CHECK(answers_the_same([] { cuda::make_device(1); }));
  CHECK(answers_the_same([] { cuda::Buffer(16, 1); }));
  CHECK(answers_the_same([] { cuda::free_bytes(1); }));
  CHECK(!cuda::available(1).usable && cuda::available(1).reason == first);
  // The other GPU goes on.
  CHECK(other.serve().empty());
}

void nothing_of_a_lost_gpu_leaks() {
  const fake_cuda::Counters left = fake_cuda::counters();
  CHECK(left.live_graphs == 0 && left.live_blocks == 0 && left.live_host_blocks == 0);
  CHECK(left.live_streams == 0 && left.live_events == 0);
}

}  // namespace

int main() {
  return check::run_all(
      {{"what_fails_beside_a_lost_gpu_names_the_loss", what_fails_beside_a_lost_gpu_names_the_loss},
       {"every_later_request_answers_the_same", every_later_request_answers_the_same},
       {"nothing_of_a_lost_gpu_leaks", nothing_of_a_lost_gpu_leaks}});
}
