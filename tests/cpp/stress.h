#pragma once

#include <cstdlib>
#include <limits>
#include <map>

#include "check.h"
#include "runtime/errors.h"
#include "sample_program.h"

// Many different requests over three sizes on one device: what a server sees in a day.
namespace stress {

using namespace sdengine::runtime;

using MakeNetwork = std::function<Denoiser(const StepBuffers&, Evaluations*)>;

inline std::size_t num_requests() {
  const char* const given = std::getenv("SDENGINE_STRESS_REQUESTS");
  return given == nullptr ? 10000 : std::strtoull(given, nullptr, 10);
}

struct Size {
  std::string set;
  std::size_t edge;
  TrajectoryShape shape;
};

inline std::vector<Size> sizes() {
  std::vector<Size> all;
  for (const std::size_t edge : {8, 12, 16}) {
    for (const std::size_t copies : {1, 2}) {
      const TrajectoryShape shape{edge * edge, copies, copies, 12, 3, DataType::kFloat32};
      all.push_back({std::to_string(edge) + "/" + std::to_string(copies), edge, shape});
    }
  }
  return all;
}

inline MemoryPool::Sets sets() {
  MemoryPool::Sets all;
  for (const Size& size : sizes()) {
    all[size.set] = trajectory_regions(size.shape);
    all[size.set].push_back({"text", 3000 * size.edge, kTextStage, kTextStage});
    all[size.set].push_back({"vae", 9000 * size.edge, kDecodeStage, kDecodeStage});
  }
  return all;
}

// A place that serves one size; it lives as long as the server.
struct Desk {
  Size size;
  std::atomic<bool> cancel{false};
  Evaluations evaluations;
  ProgramRunner runner;
  std::size_t recordings = 0;
  Denoiser network;
  const StepBuffers first_addresses;

  Desk(const Size& its_size, const MemoryPool& pool, GraphCache& graphs, const MakeNetwork& make)
      : size(its_size),
        runner(pool, size.set, size.shape, graphs,
               {"unet", size.shape.copies, size.edge, size.edge, ""}),
        network([this, whole = make(runner.buffers(), &evaluations)](RawHandle stream) {
          ++recordings;
          whole(stream);
        }),
        first_addresses(runner.buffers()) {
    evaluations.cancel = &cancel;
  }
};

struct Tally {
  std::size_t finished = 0, cancelled = 0, not_finite = 0, out_of_memory = 0;
};

inline void check_latents(const Desk& desk, const SampleProgram& program,
                          const std::vector<float>& initial, double guidance_scale,
                          const std::vector<float>& latents) {
  const std::vector<double> wanted =
      program.expected(initial, desk.size.shape.copies, guidance_scale);
  for (std::size_t e = 0; e < wanted.size(); ++e) {
    CHECK_NEAR(latents[e], wanted[e], 1e-5 * (1 + std::fabs(wanted[e])));
  }
}

// Runs one request; one in eight is cancelled half way, one in eight gives infinity.
inline void serve(Desk& desk, MemoryPool& pool, std::mt19937& engine, Tally& tally) {
  const std::size_t K = 1 + engine() % 12;
  SampleProgram program(K, 1 + engine() % 3, engine() % 2 == 0, engine());
  const double guidance_scale = static_cast<double>(engine() % 16) / 2;
  const unsigned fate = engine() % 8;
  if (fate == 0) program.b[engine() % program.b.size()] = std::numeric_limits<double>::infinity();
  desk.evaluations.num_done = 0;
  desk.evaluations.cancel_in = fate == 1 ? (K + 1) / 2 : 0;
  desk.cancel = false;

  const std::vector<float> initial = unit_noise(desk.size.shape.num_elements, engine());
  std::vector<float> latents(initial.size());
  std::size_t draws = 0;
  const MemoryPool::Lease lease(pool, desk.size.set);
  try {
    run_program(desk.runner, program, guidance_scale, desk.network, initial,
                counted_noise(initial.size(), draws), desk.cancel, latents);
    CHECK(fate != 0 && desk.evaluations.num_done == K);
    check_latents(desk, program, initial, guidance_scale, latents);
    ++tally.finished;
  } catch (const Cancelled&) {
    CHECK(fate == 1);
    ++tally.cancelled;
  } catch (const sdengine::NonFiniteError&) {
    CHECK(fate == 0);
    ++tally.not_finite;
  }
}

inline void run(const std::shared_ptr<Device>& device, const MakeNetwork& make) {
  constexpr std::size_t kMaxGraphs = 4;  // of six sizes and kinds, so that graphs come and go
  MemoryPool pool(device, sets(), 0);
  GraphCache graphs(device, kMaxGraphs);
  std::vector<std::unique_ptr<Desk>> desks;
  for (const Size& size : sizes()) {
    desks.push_back(std::make_unique<Desk>(size, pool, graphs, make));
  }

  std::mt19937 engine(2024);
  Tally tally;
  for (std::size_t request = 0; request < num_requests(); ++request) {
    Desk& desk = *desks[engine() % desks.size()];
    serve(desk, pool, engine, tally);
    const StepBuffers& now = desk.runner.buffers();
    CHECK(now.registers == desk.first_addresses.registers && now.rows == desk.first_addresses.rows);
    if (request % 100 == 0) {
      CHECK_THROWS(sdengine::OutOfMemoryError, Block(device, std::size_t{1} << 40));
      CHECK_THROWS(MemoryBudgetError, MemoryPool(device, sets(), 1000));
      ++tally.out_of_memory;
    }
  }
  CHECK(device->num_allocations() == 1 && device->num_live_blocks() == 1);
  CHECK(tally.finished > num_requests() / 2 && tally.cancelled > 0 && tally.not_finite > 0);
  std::size_t recordings = 0;
  for (const auto& desk : desks) recordings += desk->recordings;
  // Graphs were evicted and captured again, and launched more often than captured.
  CHECK(recordings > desks.size() && recordings < num_requests());
  std::printf("%zu finished, %zu cancelled, %zu not finite, %zu out of memory; %zu captures\n",
              tally.finished, tally.cancelled, tally.not_finite, tally.out_of_memory, recordings);
}

}  // namespace stress
