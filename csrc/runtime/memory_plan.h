#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "runtime/step_buffers.h"

namespace sdengine::runtime {

// A piece of memory that is needed from one stage of an image to another, both included.
struct Region {
  std::string name;
  std::size_t size_bytes;
  int first_stage;
  int last_stage;
};

// Where regions lie in an arena. Regions share bytes only if no stage needs both.
struct MemoryPlan {
  std::vector<Region> regions;
  std::vector<std::size_t> offsets;  // one a region, multiples of kAlignment
  std::size_t size_bytes = 0;
};

// Lays the largest regions out first, each at the lowest place where it fits.
// Throws std::invalid_argument for equal names, stages in the wrong order and sizes whose sum is
// beyond what can be addressed.
MemoryPlan plan_memory(const std::vector<Region>& regions);

}  // namespace sdengine::runtime
