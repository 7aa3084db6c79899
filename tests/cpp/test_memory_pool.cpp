#include <random>

#include "check.h"
#include "cpu/device.h"
#include "runtime/errors.h"
#include "runtime/memory_pool.h"

namespace {

using namespace sdengine::runtime;
using sdengine::cpu::CpuDevice;

bool overlap(std::size_t first, std::size_t first_bytes, std::size_t second,
             std::size_t second_bytes) {
  return first < second + second_bytes && second < first + first_bytes;
}

void regions_of_one_stage_never_overlap() {
  std::mt19937 engine(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<Region> regions;
    for (int i = 0; i < 12; ++i) {
      const int first = static_cast<int>(engine() % 4);
      const int last = first + static_cast<int>(engine() % 3);
      regions.push_back({std::to_string(i), engine() % 5000, first, last});
    }
    const MemoryPlan plan = plan_memory(regions);
    std::size_t sum_bytes = 0;
    for (std::size_t i = 0; i < regions.size(); ++i) {
      CHECK(plan.offsets[i] % kAlignment == 0);
      sum_bytes += (regions[i].size_bytes + kAlignment - 1) / kAlignment * kAlignment;
      CHECK(plan.offsets[i] + regions[i].size_bytes <= plan.size_bytes);
      for (std::size_t j = 0; j < i; ++j) {
        const bool meet = regions[i].first_stage <= regions[j].last_stage &&
                          regions[j].first_stage <= regions[i].last_stage;
        CHECK(!meet || !overlap(plan.offsets[i], regions[i].size_bytes, plan.offsets[j],
                                regions[j].size_bytes));
      }
    }
    CHECK(plan.size_bytes <= sum_bytes);
  }
}

void scratch_of_networks_is_shared() {
  const MemoryPlan plan = plan_memory(
      {{"text", 1024, 0, 0}, {"unet", 4096, 1, 1}, {"vae", 2048, 2, 2}, {"latents", 512, 1, 2}});
  CHECK(plan.size_bytes == 4096 + 512);
}

void fills_gaps() {
  // "long" lies above "a"; where "a" has ended, "b" and "c" fit side by side below it.
  const MemoryPlan plan =
      plan_memory({{"a", 2048, 0, 0}, {"long", 1024, 0, 1}, {"b", 1024, 1, 1}, {"c", 1000, 1, 1}});
  CHECK(plan.size_bytes == 3072);
}

void refuses_bad_regions() {
  CHECK_THROWS(std::invalid_argument, plan_memory({{"a", 1, 0, 0}, {"a", 1, 1, 1}}));
  CHECK_THROWS(std::invalid_argument, plan_memory({{"a", 1, 1, 0}}));
  CHECK_THROWS(std::invalid_argument, plan_memory({{"a", SIZE_MAX, 0, 0}}));
  CHECK_THROWS(std::invalid_argument, plan_memory({{"a", 1, 0, 0}}, 48));
  CHECK_THROWS(std::invalid_argument,
               plan_memory({{"a", SIZE_MAX / 2, 0, 0}, {"b", SIZE_MAX / 2, 0, 0}}));
}

const MemoryPool::Sets kSets = {{"512", {{"x", 1000, 0, 0}, {"y", 3000, 1, 1}}},
                                {"768", {{"x", 9000, 0, 1}, {"y", 500, 0, 0}}}};

void reserves_the_largest_set_once() {
  constexpr std::size_t kLimit = 1 << 20;
  const auto device = std::make_shared<CpuDevice>(kLimit);
  MemoryPool pool(device, kSets, 0);
  CHECK(device->num_allocations() == 1);
  CHECK(device->memory_info().free_bytes == kLimit - pool.plan("768").size_bytes);
  void* const address = pool.address("768", "y");
  {
    const MemoryPool::Lease lease(pool, "512");
    CHECK_THROWS(sdengine::DeviceError, MemoryPool::Lease(pool, "768"));
  }
  {
    const MemoryPool::Lease lease(pool, "768");
  }
  CHECK(pool.address("768", "y") == address);
  CHECK(reinterpret_cast<std::uintptr_t>(address) % kAlignment == 0);
  CHECK(device->num_allocations() == 1);
}

void refuses_what_was_not_planned() {
  MemoryPool pool(std::make_shared<CpuDevice>(), kSets, 0);
  CHECK_THROWS(std::invalid_argument, pool.address("1024", "x"));
  CHECK_THROWS(std::invalid_argument, pool.address("512", "z"));
  CHECK_THROWS(std::invalid_argument, MemoryPool::Lease(pool, "1024"));
  CHECK_THROWS(std::invalid_argument, MemoryPool(std::make_shared<CpuDevice>(), {}, 0));
  const MemoryPool::Lease lease(pool, "512");  // which the refused one has not taken
}

void a_cap_holds_before_anything_is_allocated() {
  const auto device = std::make_shared<CpuDevice>();
  const std::size_t needed = plan_memory(kSets.at("768")).size_bytes;
  try {
    MemoryPool pool(device, kSets, needed - 1);
    CHECK(false);
  } catch (const MemoryBudgetError& error) {
    CHECK(error.requested_bytes == needed);
    CHECK(error.available_bytes == needed - 1 && error.cap_bytes == needed - 1);
    CHECK(std::string(error.what()).find("768") != std::string::npos);
  }
  CHECK(device->num_allocations() == 0);
  const MemoryPool pool(device, kSets, needed);
  CHECK(device->num_live_blocks() == 1);
}

void a_full_device_holds_too() {
  const auto device = std::make_shared<CpuDevice>(4096);
  CHECK_THROWS(MemoryBudgetError, MemoryPool(device, kSets, 0));
  const Block block(device, 4000);
  CHECK_THROWS(sdengine::OutOfMemoryError, Block(device, 97));
  CHECK(device->memory_info().free_bytes == 96);
  CHECK(device->num_live_blocks() == 1);
}

}  // namespace

int main() {
  return check::run_all(
      {{"regions_of_one_stage_never_overlap", regions_of_one_stage_never_overlap},
       {"scratch_of_networks_is_shared", scratch_of_networks_is_shared},
       {"fills_gaps", fills_gaps},
       {"refuses_bad_regions", refuses_bad_regions},
       {"reserves_the_largest_set_once", reserves_the_largest_set_once},
       {"refuses_what_was_not_planned", refuses_what_was_not_planned},
       {"a_cap_holds_before_anything_is_allocated", a_cap_holds_before_anything_is_allocated},
       {"a_full_device_holds_too", a_full_device_holds_too}});
}
