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

std::size_t aligned(std::size_t size_bytes) {
  return (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

void check_regions(const std::vector<Region>& regions) {
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
    if (region.size_bytes > kMost || aligned(region.size_bytes) > kMost - sum) {
      throw std::invalid_argument("regions: \"" + region.name + "\" of " +
                                  std::to_string(region.size_bytes) +
                                  " bytes is beyond what can be addressed");
    }
    sum += aligned(region.size_bytes);
  }
}

// The lowest offset at which `size_bytes` fit between the taken ranges.
std::size_t lowest_gap(std::vector<std::pair<std::size_t, std::size_t>> taken,
                       std::size_t size_bytes) {
  std::sort(taken.begin(), taken.end());
  std::size_t offset = 0;
  for (const auto& [begin, end] : taken) {
    if (begin >= offset && begin - offset >= size_bytes) break;
    offset = std::max(offset, end);
  }
  return offset;
}

}  // namespace

MemoryPlan plan_memory(const std::vector<Region>& regions) {
  MemoryPlan plan;
  check_regions(regions);
  plan.regions = regions;
  plan.offsets.assign(regions.size(), 0);

  std::vector<std::size_t> order(regions.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t left, std::size_t right) {
    return regions[left].size_bytes > regions[right].size_bytes;
  });
  for (std::size_t placed = 0; placed < order.size(); ++placed) {
    const Region& region = regions[order[placed]];
    std::vector<std::pair<std::size_t, std::size_t>> taken;
    for (std::size_t earlier = 0; earlier < placed; ++earlier) {
      const Region& other = regions[order[earlier]];
      const std::size_t offset = plan.offsets[order[earlier]];
      if (meet(region, other)) taken.emplace_back(offset, offset + aligned(other.size_bytes));
    }
    const std::size_t size_bytes = aligned(region.size_bytes);
    const std::size_t offset = lowest_gap(std::move(taken), size_bytes);
    plan.offsets[order[placed]] = offset;
    plan.size_bytes = std::max(plan.size_bytes, offset + size_bytes);
  }
  return plan;
}

}  // namespace sdengine::runtime
