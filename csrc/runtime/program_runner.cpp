#include "runtime/program_runner.h"

#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "runtime/errors.h"

namespace sdengine::runtime {
namespace {

void refuse(const std::string& name, std::size_t value, const std::string& expected) {
  throw std::invalid_argument(name + ": " + std::to_string(value) + " is not accepted; expected " +
                              expected);
}

void check_range(const char* name, std::size_t value, std::size_t least, std::size_t most) {
  if (value < least || value > most) {
    refuse(name, value, std::to_string(least) + " to " + std::to_string(most));
  }
}

void check_shape(const TrajectoryShape& shape) {
  // So that no product of sizes below can wrap.
  constexpr std::size_t kMaxElements = std::numeric_limits<std::size_t>::max() / 1024;
  constexpr std::size_t kMaxSteps = 100000;
  check_range("num_elements", shape.num_elements, 1, kMaxElements);
  check_range("copies", shape.copies, 1, 2);
  check_range("num_timesteps", shape.num_timesteps, 1, kMaxElements);
  check_range("max_steps", shape.max_steps, 1, kMaxSteps);
  check_range("max_registers", shape.max_registers, 1, kMaxRegisters);
}

void check_plan(const MemoryPlan& plan, const TrajectoryShape& shape) {
  for (const Region& needed : trajectory_regions(shape)) {
    for (const Region& planned : plan.regions) {
      if (planned.name == needed.name && planned.size_bytes < needed.size_bytes) {
        refuse("region " + needed.name, planned.size_bytes,
               std::to_string(needed.size_bytes) + " bytes or more");
      }
    }
  }
}

StepBuffers buffers_in(const MemoryPool& pool, const std::string& set,
                       const TrajectoryShape& shape) {
  check_plan(pool.plan(set), shape);
  auto* const table = static_cast<unsigned char*>(pool.address(set, "table"));
  StepBuffers buffers{};
  buffers.registers = static_cast<float*>(pool.address(set, "registers"));
  buffers.sample = pool.address(set, "sample");
  buffers.noise_pred = pool.address(set, "noise_pred");
  buffers.noise = static_cast<float*>(pool.address(set, "noise"));
  buffers.timestep = static_cast<float*>(pool.address(set, "timestep"));
  buffers.state = reinterpret_cast<StepState*>(table);
  buffers.rows = reinterpret_cast<const double*>(table + sizeof(StepState));
  buffers.num_elements = shape.num_elements;
  buffers.copies = shape.copies;
  buffers.num_timesteps = shape.num_timesteps;
  buffers.type = shape.type;
  return buffers;
}

}  // namespace

std::vector<Region> trajectory_regions(const TrajectoryShape& shape) {
  check_shape(shape);
  const std::size_t latents_bytes = shape.num_elements * sizeof(float);
  const std::size_t network_bytes = shape.num_elements * shape.copies * size_of(shape.type);
  return {
      {"registers", latents_bytes * shape.max_registers, kDenoiseStage, kDecodeStage},
      {"sample", network_bytes, kDenoiseStage, kDenoiseStage},
      {"noise_pred", network_bytes, kDenoiseStage, kDenoiseStage},
      {"noise", latents_bytes * kNoiseSlots, kDenoiseStage, kDenoiseStage},
      {"timestep", shape.num_timesteps * sizeof(float), kDenoiseStage, kDenoiseStage},
      {"table", StepTable::size_bytes_for(shape.max_steps), kDenoiseStage, kDenoiseStage},
  };
}

ProgramRunner::ProgramRunner(const MemoryPool& pool, const std::string& set,
                             const TrajectoryShape& shape, GraphCache& graphs, GraphKey key,
                             Launch launch, std::shared_ptr<const Stream> stream)
    : device_(pool.device()),
      shape_(shape),
      graphs_(graphs),
      key_(std::move(key)),
      launch_(launch),
      buffers_(buffers_in(pool, set, shape)),
      stream_(stream != nullptr ? std::move(stream)
                                : std::make_shared<const Stream>(make_stream(device_))),
      noise_feed_(device_,
                  pool.host_memory("noise", shape.num_elements * kNoiseSlots * sizeof(float)),
                  buffers_.noise, shape.num_elements),
      results_(pool.host_memory(
          "results", sizeof(StepState) + shape.num_elements * shape.max_registers * sizeof(float))),
      step_events_{make_event(device_), make_event(device_)} {}

ProgramRunner::~ProgramRunner() { come_to_rest(); }

void ProgramRunner::warm_up(const Denoiser& network) {
  if (launch_ == Launch::kGraph) graphs_.warm_up(key_, record_step(network));
}

void ProgramRunner::start(const Program& program, double guidance_scale, const float* initial) {
  or_rest([&] {
    upload_table(program, guidance_scale, 0);
    const std::size_t size_bytes = shape_.num_elements * sizeof(float);
    device_->upload(buffers_.registers, initial, size_bytes, stream());
    device_->fill(buffers_.registers + shape_.num_elements, 0,
                  size_bytes * (program.num_registers - 1), stream());
    device_->prepare_step(buffers_, stream());
    noise_feed_.start(program.noise_before(program.num_steps));
    begin_at(0);
  });
}

void ProgramRunner::advance(const Program& program, std::size_t first, std::size_t end,
                            const Denoiser& network, const StepNoise& noise,
                            const std::atomic<bool>& cancel) {
  check_range("end", end, 0, program.num_steps);
  or_rest([&] { queue_steps(program, first, end, network, noise, cancel); });
}

void ProgramRunner::read(std::size_t num_steps, float* latents) {
  or_rest([&] {
    const std::size_t size_bytes = shape_.num_elements * sizeof(float);
    StepState state{};
    device_->download(results_->data(), buffers_.state, sizeof state, stream());
    device_->download(results_->data() + sizeof state, buffers_.registers, size_bytes, stream());
    device_->synchronize(stream());
    std::memcpy(&state, results_->data(), sizeof state);
    std::memcpy(latents, results_->data() + sizeof state, size_bytes);
    if (state.not_finite_step != 0) {
      throw NonFiniteError("unet: evaluation " + std::to_string(state.not_finite_step) + " of " +
                           std::to_string(num_steps) + " gave NaN or infinity");
    }
  });
}

void ProgramRunner::save(std::size_t num_registers, float* registers) {
  check_range("registers", num_registers, 1, shape_.max_registers);
  or_rest([&] {
    const std::size_t size_bytes = num_registers * shape_.num_elements * sizeof(float);
    device_->download(results_->data(), buffers_.registers, size_bytes, stream());
    device_->synchronize(stream());
    std::memcpy(registers, results_->data(), size_bytes);
    noise_feed_.save();
  });
}

void ProgramRunner::resume(const Program& program, double guidance_scale, const float* registers,
                           std::size_t next) {
  check_range("next", next, 0, program.num_steps);
  or_rest([&] {
    device_->synchronize(stream());
    upload_table(program, guidance_scale, next);
    if (next == num_queued_) {
      noise_feed_.resume(stream());
    } else {  // another runner went as far, and drew what it needed
      noise_feed_.start(program.noise_before(program.num_steps), program.noise_before(next));
    }
    begin_at(next);
    device_->upload(buffers_.registers, registers,
                    program.num_registers * shape_.num_elements * sizeof(float), stream());
    device_->prepare_step(buffers_, stream());
  });
}

// What is queued still uses the buffers when something throws; the next run must find them at rest.
template <typename Work>
void ProgramRunner::or_rest(const Work& work) {
  try {
    work();
  } catch (...) {
    come_to_rest();
    device_->make_current();  // throws where the device is lost, which says more than what follows
    throw;
  }
}

GraphCache::Record ProgramRunner::record_step(const Denoiser& network) const {
  return [this, &network](RawHandle stream) {
    network(stream);
    device_->finish_step(buffers_, stream);
  };
}

void ProgramRunner::upload_table(const Program& program, double guidance_scale, std::size_t next) {
  const StepTable table(program, guidance_scale, shape_.max_steps, shape_.max_registers, next);
  device_->upload(buffers_.state, table.data(), table.size_bytes(), stream());
}

void ProgramRunner::begin_at(std::size_t step) {
  const std::lock_guard<std::mutex> lock(progress_mutex_);
  first_queued_ = num_queued_ = step;
}

void ProgramRunner::queue_steps(const Program& program, std::size_t first, std::size_t end,
                                const Denoiser& network, const StepNoise& noise,
                                const std::atomic<bool>& cancel) {
  const GraphCache::Record record = record_step(network);
  for (std::size_t k = first; k < end; ++k) {
    const Event& event = step_events_[k % kQueueDepth];
    if (k >= first_queued_ + kQueueDepth) device_->wait_for(event.raw());
    if (cancel) {
      throw Cancelled("cancelled before evaluation " + std::to_string(k + 1) + " of " +
                      std::to_string(program.num_steps));
    }
    if (program.needs_noise(k)) noise_feed_.provide(noise, stream());
    launch_step(record);
    const std::lock_guard<std::mutex> lock(progress_mutex_);
    device_->record(event.raw(), stream());
    num_queued_ = k + 1;
  }
}

void ProgramRunner::launch_step(const GraphCache::Record& record) {
  if (launch_ == Launch::kGraph) {
    why_not_captured_ = graphs_.launch(key_, stream(), record);
    if (why_not_captured_.empty()) return;
    // The cache dropped the graph and cannot make it again: the run goes on all the same.
    launch_ = Launch::kPlain;
  }
  record(stream());
}

std::size_t ProgramRunner::steps_done() {
  const std::lock_guard<std::mutex> lock(progress_mutex_);
  std::size_t done = num_queued_;
  for (std::size_t k = num_queued_; k > first_queued_ && k + kQueueDepth > num_queued_; --k) {
    if (!device_->is_done(step_events_[(k - 1) % kQueueDepth].raw())) done = k - 1;
  }
  return done;
}

void ProgramRunner::come_to_rest() noexcept {
  try {
    device_->synchronize(stream());
  } catch (const DeviceError&) {
    // A device that failed runs nothing any more; the error that led here says more.
  }
}

}  // namespace sdengine::runtime
