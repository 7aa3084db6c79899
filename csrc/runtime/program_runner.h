#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/graph_cache.h"
#include "runtime/memory_pool.h"
#include "runtime/noise_feed.h"
#include "runtime/step_table.h"

namespace sdengine::runtime {

// What a trajectory's memory depends on.
struct TrajectoryShape {
  std::size_t num_elements;   // of one latents batch
  std::size_t copies;         // 2 with guidance, else 1
  std::size_t num_timesteps;  // values in the network's timestep input
  std::size_t max_steps;
  std::size_t max_registers;
  DataType type;  // of the network's sample and noise_pred
};

// The stages of an image; memory of stages that never meet is shared.
enum Stage : int { kTextStage = 0, kDenoiseStage = 1, kDecodeStage = 2 };

// The regions that a trajectory finds in its pool: "registers", "sample", "noise_pred", "noise",
// "timestep" and "table". The registers last until the decoder has read them.
// Throws std::invalid_argument for a shape that no step kernel runs.
std::vector<Region> trajectory_regions(const TrajectoryShape& shape);

// Queues one evaluation of the network: reads sample and timestep, writes noise_pred. It is
// recorded into a graph once and not called again for that graph's key.
using Denoiser = std::function<void(RawHandle stream)>;

// How a step reaches the device: as one captured graph, or piece by piece where a network cannot be
// captured.
enum class Launch { kGraph, kPlain };

// Runs sampler programs on a device without leaving this code between the steps. The hot loop
// allocates nothing on the device: a step is one graph launch, and a few uploads in a whole run
// bring the noise of the host. One image at a time; the pool's lease is the caller's.
//
// At most two evaluations are queued ahead, over all calls of advance: who asks for one at a time
// and looks at steps_done between keeps the device as busy as who asks for all.
//
// A caller may change the network's other inputs or look at the latents between two steps; what it
// queues on stream() meanwhile is in order with the steps. save and resume give the memory to
// somebody else between.
//
// Whatever throws, DeviceError or what the network or the noise throws, leaves nothing queued, and
// the object can start again.
class ProgramRunner {
 public:
  // pool: holds trajectory_regions(shape) in the set named `set`. Pool and graphs must outlive this
  // object. stream: where to queue; null for one of its own.
  // Throws std::invalid_argument for a region that is missing or too small.
  ProgramRunner(const MemoryPool& pool, const std::string& set, const TrajectoryShape& shape,
                GraphCache& graphs, GraphKey key, Launch launch = Launch::kGraph,
                std::shared_ptr<const Stream> stream = nullptr);
  // Waits for what is queued.
  ~ProgramRunner();
  ProgramRunner(const ProgramRunner&) = delete;
  ProgramRunner& operator=(const ProgramRunner&) = delete;

  // Captures the step's graph ahead of the first image.
  void warm_up(const Denoiser& network);

  // Brings a program and r[0] [num_elements] to the device; the other registers start as zero.
  // Throws std::invalid_argument for a program that is too long or has too many registers.
  void start(const Program& program, double guidance_scale, const float* initial);

  // Queues the evaluations `first` to `end` - 1 of the program that was started. The work may still
  // run when this returns. cancel: set by another thread to end before the next evaluation.
  // Throws Cancelled.
  void advance(const Program& program, std::size_t first, std::size_t end, const Denoiser& network,
               const StepNoise& noise, const std::atomic<bool>& cancel);

  // How many evaluations of the program have run, exactly; asks the device and waits for nothing.
  // Any thread may call it. Throws DeviceLostError.
  std::size_t steps_done();

  // Why steps are queued piece by piece although they were to be a graph, since one could not be
  // captured in the middle of a run; empty else.
  const std::string& why_not_captured() const { return why_not_captured_; }

  // Waits, and writes r[0] [num_elements]. Throws NonFiniteError naming the evaluation of
  // `num_steps`.
  void read(std::size_t num_steps, float* latents);

  // Waits, and writes the registers [num_registers,num_elements].
  void save(std::size_t num_registers, float* registers);

  // Brings a program and what `save` wrote before evaluation `next` to the device.
  void resume(const Program& program, double guidance_scale, const float* registers,
              std::size_t next);

  const StepBuffers& buffers() const { return buffers_; }
  RawHandle stream() const { return stream_->raw(); }

 private:
  // Steps that may be queued ahead: enough to keep a GPU busy, few enough to cancel at once.
  static constexpr std::size_t kQueueDepth = 2;

  GraphCache::Record record_step(const Denoiser& network) const;
  void upload_table(const Program& program, double guidance_scale, std::size_t next);
  void queue_steps(const Program& program, std::size_t first, std::size_t end,
                   const Denoiser& network, const StepNoise& noise,
                   const std::atomic<bool>& cancel);
  void launch_step(const GraphCache::Record& record);
  void begin_at(std::size_t step);
  void come_to_rest() noexcept;
  template <typename Work>
  void or_rest(const Work& work);

  std::shared_ptr<Device> device_;
  TrajectoryShape shape_;
  GraphCache& graphs_;
  GraphKey key_;
  Launch launch_;
  StepBuffers buffers_;
  std::shared_ptr<const Stream> stream_;
  NoiseFeed noise_feed_;
  std::shared_ptr<const HostBlock> results_;  // StepState, then registers
  std::string why_not_captured_;
  std::mutex progress_mutex_;  // guards the events' recording and the two below
  Event step_events_[kQueueDepth];
  std::size_t first_queued_ = 0, num_queued_ = 0;  // of the program, since start or resume
};

}  // namespace sdengine::runtime
