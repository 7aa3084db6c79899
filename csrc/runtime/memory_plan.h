#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "runtime/step_buffers.h"

namespace sdengine::runtime {

// A piece of memory that is needed from one stage to another, both included: stages of an image, or
// the operations of a network.
struct Region {
  std::string name;
  std::size_t size_bytes;
  int first_stage;
  int last_stage;
};

// Where regions lie in an arena. Regions share bytes only if no stage needs both.
struct MemoryPlan {
  std::vector<Region> regions;
  std::vector<std::size_t> offsets;  // one a region, multiples of the alignment
  std::size_t size_bytes = 0;
};

// Lays the largest regions out first, each into the smallest gap that holds it.
// Throws std::invalid_argument for an alignment that is not a power of two, equal names, stages in
// the wrong order and sizes whose sum is beyond what can be addressed.
//
// Source: "Efficient Memory Management for Deep Neural Net Inference" (Pisarchyk and Lee 2020),
// greedy by size.
MemoryPlan plan_memory(const std::vector<Region>& regions, std::size_t alignment = kAlignment);

}  // namespace sdengine::runtime
