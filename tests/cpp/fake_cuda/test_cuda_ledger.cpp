// What a trajectory does on the GPU, to the last copy, kernel, launch and wait.

#include "check.h"
#include "cuda/device.h"
#include "network.h"

namespace {

using namespace sdengine::runtime;

constexpr std::size_t kPerImage = 300, kSteps = 20;

enum class Noise { kNone, kHost, kDevice };

struct Request {
  std::size_t batch, copies;
  Noise noise;
  bool one_by_one;  // as with progress
};

struct Server {
  Request request;
  std::size_t count;
  TrajectoryShape shape;
  std::shared_ptr<Device> device = sdengine::cuda::make_device(0);
  MemoryPool pool;
  GraphCache graphs{device, 1};
  ProgramRunner runner;
  Denoiser network;
  std::atomic<bool> cancel{false};

  explicit Server(const Request& its_request)
      : request(its_request),
        count(request.batch * kPerImage),
        shape{count, request.copies, request.batch * request.copies, kSteps, 4, DataType::kFloat16},
        pool(device, {{"set", trajectory_regions(shape)}}, 0),
        runner(pool, "set", shape, graphs, {"unet", request.batch, 8, 8, ""}),
        network(fake_cuda_network<__half>(runner.buffers())) {}

  StepNoise noise(std::size_t& draws) {
    if (request.noise == Noise::kNone) return {};
    if (request.noise == Noise::kHost) return counted_noise(count, draws);
    return {{}, [this](float* target, RawHandle stream) {
              for (std::size_t i = 0; i < request.batch; ++i) {
                device->draw_philox(i, 1, target + i * kPerImage, kPerImage, stream);
              }
            }};
  }

  fake_cuda::Ledger serve() {
    const SampleProgram program(kSteps, 2, request.noise != Noise::kNone);
    const std::vector<float> initial = unit_noise(count);
    std::vector<float> latents(count);
    std::size_t draws = 0;
    const StepNoise drawn = noise(draws);
    const fake_cuda::Ledger before = fake_cuda::ledger();
    runner.start(program.view(), 3.0, initial.data());
    for (std::size_t k = 0; request.one_by_one && k < kSteps; ++k) {
      runner.advance(program.view(), k, k + 1, network, drawn, cancel);
      runner.steps_done();
    }
    if (!request.one_by_one) {
      runner.advance(program.view(), 0, kSteps, network, drawn, cancel);
    }
    runner.read(kSteps, latents.data());
    return fake_cuda::ledger() - before;
  }
};

fake_cuda::Ledger expected(const Request& request) {
  const std::size_t latents_bytes = request.batch * kPerImage * sizeof(float);
  const std::size_t noisy = request.noise == Noise::kNone ? 0 : kSteps / 2;
  const bool from_host = request.noise == Noise::kHost;
  fake_cuda::Ledger all;
  // The program's table and the first latents; noise for 1, 2, 4 and 3 evaluations.
  all.uploads = 2 + (from_host ? 4 : 0);
  all.uploaded_bytes =
      StepTable::size_bytes_for(kSteps) + latents_bytes + (from_host ? noisy * latents_bytes : 0);
  all.downloads = 2;  // whether all was finite, and the latents
  all.downloaded_bytes = sizeof(StepState) + latents_bytes;
  all.fills = 1;  // the registers but the first
  // The first step's begin, then the network, and a step's end with the next one's begin; device
  // noise is a kernel an image.
  all.kernels = 1 + 2 * kSteps + (request.noise == Noise::kDevice ? noisy * request.batch : 0);
  all.graph_launches = kSteps;
  all.waits = kSteps - 2 + 1;  // two steps ahead, and for the latents
  return all;
}

void check_ledger(const Request& request) {
  fake_cuda::reset();
  {
    Server server(request);
    server.runner.warm_up(server.network);
    const std::string wanted = expected(request).text();
    for (int again = 0; again < 3; ++again) {
      const std::string found = server.serve().text();
      if (found != wanted) throw check::Failure(found + "; expected " + wanted);
    }
    CHECK(fake_cuda::counters().allocations == 1);
  }
  for (const std::string& violation : fake_cuda::violations()) throw check::Failure(violation);
}

void every_kind_of_request() {
  for (const std::size_t batch : {1, 4}) {
    for (const std::size_t copies : {1, 2}) {
      for (const Noise noise : {Noise::kNone, Noise::kHost, Noise::kDevice}) {
        for (const bool one_by_one : {false, true}) {
          check_ledger({batch, copies, noise, one_by_one});
        }
      }
    }
  }
}

// Uploads beyond the ring of pinned memory are cut and wait for room, and arrive whole.
void large_and_many_uploads_arrive() {
  fake_cuda::reset();
  {
    const auto device = sdengine::cuda::make_device(0);
    const Stream stream = make_stream(device);
    const std::size_t size_bytes = (std::size_t{10} << 20) + 3;
    const Block block(device, size_bytes);
    std::vector<unsigned char> sent(size_bytes), received(size_bytes);
    for (std::size_t i = 0; i < size_bytes; ++i) sent[i] = static_cast<unsigned char>(i * 7 >> 3);
    std::vector<unsigned char> reused = sent;
    device->upload(block.data(), reused.data(), size_bytes, stream.raw());
    reused.assign(size_bytes, 0);  // upload has read it
    device->download(received.data(), block.data(), size_bytes, stream.raw());
    device->synchronize(stream.raw());
    CHECK(received == sent);
    for (unsigned char value = 0; value < 40; ++value) {
      device->upload(static_cast<unsigned char*>(block.data()) + value, &value, 1, stream.raw());
    }
    device->synchronize(stream.raw());
    for (int i = 0; i < 40; ++i) CHECK(static_cast<const unsigned char*>(block.data())[i] == i);
    CHECK(fake_cuda::ledger().pageable_copies == 1);  // the download above
  }
  CHECK(fake_cuda::counters().live_host_blocks == 0 && fake_cuda::counters().live_events == 0);
  for (const std::string& violation : fake_cuda::violations()) throw check::Failure(violation);
}

}  // namespace

int main() {
  return check::run_all({{"every_kind_of_request", every_kind_of_request},
                         {"large_and_many_uploads_arrive", large_and_many_uploads_arrive}});
}
