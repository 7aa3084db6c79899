#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "runtime/handles.h"
#include "runtime/step_table.h"

namespace sdengine::runtime {

// Unit noise of a trajectory, evaluation by evaluation. Either may be empty; where both are there,
// each gives a part of the values and `queue` comes later.
struct StepNoise {
  // Draws the next [num_elements] on the host.
  std::function<void(float* values)> draw;
  // Queues the next [num_elements] where the device computes them itself.
  std::function<void(float* target, RawHandle stream)> queue;
};

// Brings noise to the device ahead of the steps that read it. What the host draws goes there from
// pinned memory in a few copies, each for twice as many evaluations as the one before: the first
// evaluation waits for its own noise only, and the rest is drawn while the device computes. (One
// copy of all would put every draw ahead of the first evaluation.)
class NoiseFeed {
 public:
  // The most evaluations that are drawn for at once: fewer milliseconds than a step takes.
  static constexpr std::size_t kMostAtOnce = 8;

  // slots: [kNoiseSlots, num_elements] on the device. host: as much.
  NoiseFeed(std::shared_ptr<Device> device, std::shared_ptr<const HostBlock> host, float* slots,
            std::size_t num_elements);

  // Begins anew; `total` evaluations need noise, the first `provided` of which have had it.
  void start(std::size_t total, std::size_t provided = 0);

  // Sees that the noise of the next evaluation that needs some comes before what is queued next.
  // Throws std::invalid_argument where nothing gives any.
  void provide(const StepNoise& noise, RawHandle stream);

  // Keeps what was drawn and not read; the device must be at rest.
  void save();
  // Brings it back, when others have used the memory; the device must be at rest.
  void resume(RawHandle stream);

 private:
  float* host_slot(std::size_t index) const;
  void draw_more(const StepNoise& noise, RawHandle stream);
  void upload(std::size_t first, std::size_t end, RawHandle stream);

  std::shared_ptr<Device> device_;
  std::shared_ptr<const HostBlock> host_;
  float* const slots_;
  const std::size_t num_elements_;
  Event uploaded_;  // the last copy
  // Evaluations with noise: of the whole trajectory, provided for, drawn for, and drawn at once.
  std::size_t total_ = 0, provided_ = 0, drawn_ = 0, last_batch_ = 0;
  std::vector<float> saved_;
};

}  // namespace sdengine::runtime
