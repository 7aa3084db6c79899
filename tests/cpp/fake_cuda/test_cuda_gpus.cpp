// Which GPUs there are, what asking about them costs, and which one work goes to.

#include <thread>

#include "check.h"
#include "cuda/device.h"
#include "cuda/info.h"
#include "cuda/step_kernels.h"
#include "network.h"

namespace {

using namespace sdengine::runtime;
namespace cuda = sdengine::cuda;

constexpr std::size_t kElements = 300;

void check_no_violations() {
  for (const std::string& violation : fake_cuda::violations()) throw check::Failure(violation);
}

bool says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Memory, graphs and a runner on one GPU.
struct Server {
  TrajectoryShape shape{kElements, 2, 3, 20, 4, DataType::kFloat32};
  std::shared_ptr<Device> device;
  MemoryPool pool;
  GraphCache graphs{device, 1};
  ProgramRunner runner;
  Denoiser network;
  std::atomic<bool> cancel{false};
  std::vector<float> initial = unit_noise(kElements), latents = std::vector<float>(kElements);

  explicit Server(int index)
      : device(cuda::make_device(index)),
        pool(device, {{"set", trajectory_regions(shape)}}, 0),
        runner(pool, "set", shape, graphs, {"unet", 1, 8, 8, ""}),
        network(fake_cuda_network<float>(runner.buffers())) {}

  void run(const SampleProgram& program) {
    std::size_t draws = 0;
    run_program(runner, program, 3.0, network, initial, counted_noise(kElements, draws), cancel,
                latents);
    const std::vector<double> wanted = program.expected(initial, shape.copies, 3.0);
    for (std::size_t e = 0; e < kElements; ++e) CHECK_NEAR(latents[e], wanted[e], 1e-5);
  }
};

void asking_makes_no_context() {
  fake_cuda::reset({{90}, {89, 1000}});
  CHECK(cuda::available(0).usable && cuda::available(1).usable);
  const cuda::DeviceInfo info = cuda::device_info(1);
  CHECK(info.compute_capability == 89 && info.total_bytes == 1000);
  CHECK(says(cuda::available(1).reason, "Fake GPU, compute capability 8.9"));
  CHECK(fake_cuda::counters().contexts == 0);
  CHECK(cuda::free_bytes(1) == 1000 && fake_cuda::counters().contexts == 1);
  check_no_violations();
}

void a_gpu_that_is_not_there_is_refused() {
  fake_cuda::reset({{90}, {89}});
  for (const int index : {-1, 2}) {
    const cuda::Availability found = cuda::available(index);
    CHECK(!found.usable && says(found.reason, "is not there; there are 2, from 0"));
    CHECK_THROWS(sdengine::DeviceError, cuda::make_device(index));
  }
  fake_cuda::reset(std::vector<fake_cuda::Gpu>{});
  CHECK(says(cuda::available(0).reason, "no NVIDIA GPU was found"));
}

void a_gpu_without_kernels_is_refused_at_once() {
  for (const int capability : {70, 75, 86, 103, 121}) {
    fake_cuda::reset({{capability}});
    const cuda::Availability found = cuda::available(0);
    CHECK(found.usable == (capability >= 75));
    if (found.usable) {
      Server(0).run(SampleProgram(3, 1, false));
    } else {
      CHECK(says(found.reason, "compute capability 7.0: this build has no kernels for it"));
      CHECK(says(found.reason, "only for 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, 12.0"));
      CHECK(fake_cuda::counters().contexts == 0);
      try {
        cuda::make_device(0);
        CHECK(false);
      } catch (const sdengine::DeviceError& error) {
        CHECK(says(error.what(), "no kernels for it"));
      }
    }
    check_no_violations();
  }
  CHECK(cuda::compiled_capabilities().front() == 75);
}

// A build may list an architecture and hold no code that this GPU takes.
void loading_a_kernel_finds_a_missing_image() {
  fake_cuda::reset({{70}});
  CHECK_THROWS(sdengine::DeviceError, cuda::load_step_kernels());
  CHECK(cudaGetLastError() == cudaSuccess);
}

void every_thread_works_on_its_devices_gpu() {
  fake_cuda::reset({{90}, {89}});
  Server first(0), second(1);
  const SampleProgram program(12, 2, true);
  first.run(program);
  second.run(program);
  std::thread([&] { second.run(program); }).join();  // a thread whose current GPU is still 0
  std::thread([&] {
    first.run(program);
    second.run(program);
    first.run(program);
  }).join();
  second.device->make_current();
  int current = 0;
  CHECK(cudaGetDevice(&current) == cudaSuccess && current == 1);
  check_no_violations();
}

void a_buffer_lies_on_its_gpu() {
  fake_cuda::reset({{90}, {89, 1000}});
  {
    cuda::Buffer buffer(600, 1);
    const Server other(0);
    const std::vector<unsigned char> sent(600, 7);
    std::vector<unsigned char> received(600);
    buffer.upload(sent.data(), sent.size());
    // What is queued now, on any stream, finds the bytes there.
    CHECK(static_cast<const unsigned char*>(buffer.data())[599] == 7);
    buffer.download(received.data(), received.size());
    CHECK(received == sent);
    CHECK(cuda::free_bytes(1) == 400);
    cuda::synchronize(1);
  }
  check_no_violations();
}

}  // namespace

int main() {
  return check::run_all(
      {{"asking_makes_no_context", asking_makes_no_context},
       {"a_gpu_that_is_not_there_is_refused", a_gpu_that_is_not_there_is_refused},
       {"a_gpu_without_kernels_is_refused_at_once", a_gpu_without_kernels_is_refused_at_once},
       {"loading_a_kernel_finds_a_missing_image", loading_a_kernel_finds_a_missing_image},
       {"every_thread_works_on_its_devices_gpu", every_thread_works_on_its_devices_gpu},
       {"a_buffer_lies_on_its_gpu", a_buffer_lies_on_its_gpu}});
}
