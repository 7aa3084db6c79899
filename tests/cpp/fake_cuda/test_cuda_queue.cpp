// What a device queues beside steps, and trajectories in parts, on the fake.

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/philox_normal.h"
#include "cuda/device.h"
#include "network.h"
#include "runtime/errors.h"

namespace {

using namespace sdengine::runtime;

constexpr std::size_t kElements = 300;

void check_no_violations() {
  for (const std::string& violation : fake_cuda::violations()) throw check::Failure(violation);
}

template <typename T>
struct Place {
  std::shared_ptr<Device> device = sdengine::cuda::make_device(0);
  std::shared_ptr<const Stream> stream = std::make_shared<const Stream>(make_stream(device));
  Block block;

  explicit Place(std::size_t count) : block(device, count * sizeof(T)) {}

  T* data() const { return static_cast<T*>(block.data()); }
  void send(const std::vector<T>& values) const {
    device->upload(data(), values.data(), values.size() * sizeof(T), stream->raw());
  }
  std::vector<T> get(std::size_t count) const {
    std::vector<T> values(count);
    device->download(values.data(), data(), count * sizeof(T), stream->raw());
    device->synchronize(stream->raw());
    return values;
  }
};

void philox_equals_the_cpus_to_the_bit() {
  fake_cuda::reset();
  const Place<float> place(2 * kElements);
  sdengine::cpu::PhiloxNormal generator(0x123456789abcdef0u);
  std::vector<float> wanted(kElements);
  for (int draw = 0; draw < 3; ++draw) {
    CHECK(generator.seed() == 0x123456789abcdef0u);
    place.device->draw_philox(generator.seed(), static_cast<std::uint32_t>(draw), place.data(),
                              kElements, place.stream->raw());
    generator.fill(wanted.data(), kElements);
    CHECK(place.get(kElements) == wanted);
  }
  CHECK(generator.take() == 3 && generator.take() == 4);
  check_no_violations();
}

template <typename T>
void check_scale(DataType type) {
  fake_cuda::reset();
  const std::vector<float> latents = unit_noise(kElements);
  Place<float> place(2 * kElements);
  place.send(latents);
  void* const out = place.data() + kElements;
  place.device->scale(place.data(), kElements, 1 / 0.18215, out, type, place.stream->raw());
  place.device->synchronize(place.stream->raw());
  for (std::size_t e = 0; e < kElements; ++e) {
    const auto wanted = sdengine::cuda::from_float<T>(static_cast<float>(1 / 0.18215) * latents[e]);
    CHECK(sdengine::cuda::to_float(static_cast<const T*>(out)[e]) ==
          sdengine::cuda::to_float(wanted));
  }
  check_no_violations();
}

void scales_in_every_type() {
  check_scale<float>(DataType::kFloat32);
  check_scale<__half>(DataType::kFloat16);
  check_scale<__nv_bfloat16>(DataType::kBFloat16);
}

void pixels_through_the_device() {
  fake_cuda::reset();
  constexpr std::size_t kPixels = 100;
  const std::vector<float> images = unit_noise(3 * kPixels);
  const Place<float> place(4 * kPixels);
  place.send(images);
  auto* const out = reinterpret_cast<std::uint8_t*>(place.data() + 3 * kPixels);
  auto* const flag = reinterpret_cast<std::int32_t*>(out + 3 * kPixels);
  place.device->fill(flag, 0, sizeof *flag, place.stream->raw());
  place.device->to_pixels(place.data(), DataType::kFloat32, 1, kPixels, out, flag,
                          place.stream->raw());
  std::vector<std::uint8_t> wanted(3 * kPixels);
  sdengine::cpu::images_to_uint8(images.data(), 1, kPixels, wanted.data());
  place.device->synchronize(place.stream->raw());
  CHECK(std::equal(wanted.begin(), wanted.end(), out) && *flag == 0);
  check_no_violations();
}

struct Server {
  TrajectoryShape shape{kElements, 2, 5, 20, 4, DataType::kFloat16};
  std::shared_ptr<Device> device = sdengine::cuda::make_device(0);
  std::shared_ptr<const Stream> stream = std::make_shared<const Stream>(make_stream(device));
  MemoryPool pool{device, {{"set", trajectory_regions(shape)}}, 0};
  GraphCache graphs{device, 2};
  std::atomic<bool> cancel{false};
  std::vector<float> initial = unit_noise(kElements), latents = std::vector<float>(kElements);
  std::size_t recordings = 0;

  ProgramRunner runner(Launch launch) {
    return {pool, "set", shape, graphs, {"unet", 1, 8, 8, ""}, launch, stream};
  }

  Denoiser network(const ProgramRunner& of) {
    return [this, whole = fake_cuda_network<__half>(of.buffers())](RawHandle target) {
      ++recordings;
      whole(target);
    };
  }

  void check_result(const SampleProgram& program) {
    const std::vector<double> wanted = program.expected(initial, shape.copies, 3.0);
    for (std::size_t e = 0; e < kElements; ++e) {
      CHECK_NEAR(latents[e], wanted[e], 2e-3 * (1 + std::fabs(wanted[e])));
    }
  }
};

void parts_equal_the_whole() {
  fake_cuda::reset();
  Server server;
  const SampleProgram program(17, 3, true);
  for (const Launch launch : {Launch::kGraph, Launch::kPlain}) {
    ProgramRunner runner = server.runner(launch);
    CHECK(runner.stream() == server.stream->raw());
    const Denoiser network = server.network(runner);
    const std::size_t allocations = fake_cuda::counters().allocations;
    const std::size_t launches = fake_cuda::counters().launches;
    server.recordings = 0;
    std::size_t draws = 0;
    std::vector<float> registers(3 * kElements);
    runner.start(program.view(), 3.0, server.initial.data());
    for (const std::size_t end : {1, 2, 9, 17}) {
      const std::size_t first = end == 1 ? 0 : end == 2 ? 1 : end == 9 ? 2 : 9;
      runner.advance(program.view(), first, end, network, counted_noise(kElements, draws),
                     server.cancel);
      // Somebody else writes where the registers were, and this goes on from what it saved.
      runner.save(3, registers.data());
      server.device->fill(runner.buffers().registers, 0xff, 3 * kElements * sizeof(float),
                          runner.stream());
      server.device->fill(runner.buffers().state, 0xff, sizeof(StepState), runner.stream());
      runner.resume(program.view(), 3.0, registers.data(), end);
    }
    runner.read(17, server.latents.data());
    server.check_result(program);
    const bool captured = launch == Launch::kGraph;
    CHECK(server.recordings == (captured ? 1u : 17u));
    CHECK(fake_cuda::counters().launches - launches == (captured ? 17u : 0u));
    CHECK(fake_cuda::counters().allocations == allocations);
  }
  check_no_violations();
}

void a_dropped_graph_goes_before_what_it_came_from() {
  fake_cuda::reset();
  Server server;
  const SampleProgram program(4, 1, false);
  ProgramRunner runner = server.runner(Launch::kGraph);
  const Denoiser network = server.network(runner);
  runner.warm_up(network);
  CHECK(fake_cuda::counters().live_graphs == 1 && server.recordings == 1);
  server.graphs.drop({"another", 1, 8, 8, ""});
  CHECK(fake_cuda::counters().live_graphs == 1);
  server.graphs.drop({"unet", 1, 8, 8, ""});
  CHECK(fake_cuda::counters().live_graphs == 0);
  std::size_t draws = 0;
  run_program(runner, program, 3.0, network, server.initial, counted_noise(kElements, draws),
              server.cancel, server.latents);
  server.check_result(program);
  CHECK(server.recordings == 2);
  CHECK_THROWS(std::invalid_argument,
               runner.advance(program.view(), 0, 5, network, {}, server.cancel));
  CHECK_THROWS(std::invalid_argument, runner.resume(program.view(), 3.0, server.initial.data(), 5));
  CHECK_THROWS(std::invalid_argument, runner.save(5, server.initial.data()));
  check_no_violations();
}

}  // namespace

int main() {
  return check::run_all({{"philox_equals_the_cpus_to_the_bit", philox_equals_the_cpus_to_the_bit},
                         {"scales_in_every_type", scales_in_every_type},
                         {"pixels_through_the_device", pixels_through_the_device},
                         {"parts_equal_the_whole", parts_equal_the_whole},
                         {"a_dropped_graph_goes_before_what_it_came_from",
                          a_dropped_graph_goes_before_what_it_came_from}});
}
