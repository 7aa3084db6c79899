#include "runtime/memory_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>
#include <utility>

namespace sdengine::runtime {
namespace {

bool meet(const Region& left, const Region& right) {
  return left.first_stage <= right.last_stage && right.first_stage <= left.last_stage;
}

std::size_t aligned(std::size_t size_bytes, std::size_t alignment) {
  return (size_bytes + alignment - 1) & ~(alignment - 1);
}

void check_regions(const std::vector<Region>& regions, std::size_t alignment) {
  // Half of the address space, so that no sum below can wrap.
  constexpr std::size_t kMost = std::numeric_limits<std::size_t>::max() / 2;
  std::set<std::string> names;
  std::size_t sum = 0;
  for (const Region& region : regions) {
    if (!names.insert(region.name).second) {
      throw std::invalid_argument("regions: \"" + region.name + "\" is there twice");
    }
    if (region.first_stage > region.last_stage) {
      throw std::invalid_argument("regions: \"" + region.name + "\" ends before it begins");
    }
    if (region.size_bytes > kMost || aligned(region.size_bytes, alignment) > kMost - sum) {
      throw std::invalid_argument("regions: \"" + region.name + "\" of " +
                                  std::to_string(region.size_bytes) +
                                  " bytes is beyond what can be addressed");
    }
    sum += aligned(region.size_bytes, alignment);
  }
}

using Range = std::pair<std::size_t, std::size_t>;  // begin and end

// The begin of the smallest gap between the taken ranges that holds `size_bytes`, or the end of
// all.
std::size_t smallest_gap(std::vector<Range> taken, std::size_t size_bytes) {
  std::sort(taken.begin(), taken.end());
  std::size_t end = 0, best = 0, best_bytes = std::numeric_limits<std::size_t>::max();
  for (const auto& [begin, next_end] : taken) {
    if (begin >= end && begin - end >= size_bytes && begin - end < best_bytes) {
      best = end;
      best_bytes = begin - end;
    }
    end = std::max(end, next_end);
  }
  return best_bytes == std::numeric_limits<std::size_t>::max() ? end : best;
}

// Indices of the regions, the largest first and of equal ones the earliest.
std::vector<std::size_t> by_size(const std::vector<Region>& regions, std::size_t alignment) {
  std::vector<std::size_t> order(regions.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t left, std::size_t right) {
    const std::size_t left_bytes = aligned(regions[left].size_bytes, alignment);
    const std::size_t right_bytes = aligned(regions[right].size_bytes, alignment);
    if (left_bytes != right_bytes) return left_bytes > right_bytes;
    return regions[left].first_stage < regions[right].first_stage;
  });
  return order;
}

}  // namespace

MemoryPlan plan_memory(const std::vector<Region>& regions, std::size_t alignment) {
  if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
    throw std::invalid_argument("alignment: " + std::to_string(alignment) +
                                " is not accepted; expected a power of two");
  }
  check_regions(regions, alignment);
  MemoryPlan plan;
  plan.regions = regions;
  plan.offsets.assign(regions.size(), 0);
  const std::vector<std::size_t> order = by_size(regions, alignment);
  for (std::size_t placed = 0; placed < order.size(); ++placed) {
    const Region& region = regions[order[placed]];
    std::vector<Range> taken;
    for (std::size_t earlier = 0; earlier < placed; ++earlier) {
      const Region& other = regions[order[earlier]];
      const std::size_t offset = plan.offsets[order[earlier]];
      if (meet(region, other)) {
        taken.emplace_back(offset, offset + aligned(other.size_bytes, alignment));
      }
    }
    const std::size_t size_bytes = aligned(region.size_bytes, alignment);
    const std::size_t offset = smallest_gap(std::move(taken), size_bytes);
    plan.offsets[order[placed]] = offset;
    plan.size_bytes = std::max(plan.size_bytes, offset + size_bytes);
  }
  return plan;
}

}  // namespace sdengine::runtime
