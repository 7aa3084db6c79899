#include "runtime/memory_pool.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "runtime/errors.h"

namespace sdengine::runtime {

MemoryPool::MemoryPool(std::shared_ptr<Device> device, const Sets& sets, std::size_t cap_bytes)
    : device_(std::move(device)) {
  if (sets.empty()) throw std::invalid_argument("sets: there is none; expected one an image size");
  const MemoryPlan* largest = nullptr;
  std::string largest_name;
  for (const auto& [name, regions] : sets) {
    const MemoryPlan& planned = plans_.emplace(name, plan_memory(regions)).first->second;
    if (largest == nullptr || planned.size_bytes > largest->size_bytes) {
      largest = &planned;
      largest_name = name;
    }
  }
  const std::size_t free_bytes = device_->memory_info().free_bytes;
  const std::size_t available = cap_bytes == 0 ? free_bytes : std::min(free_bytes, cap_bytes);
  if (largest->size_bytes > available) {
    throw MemoryBudgetError("the memory plan for " + largest_name, largest->size_bytes, available,
                            cap_bytes);
  }
  // A device has no blocks of nothing.
  arena_ = std::make_unique<Block>(device_, std::max(largest->size_bytes, kAlignment));
}

MemoryPool::Lease::Lease(MemoryPool& pool, const std::string& set) : pool_(pool) {
  pool_.plan(set);
  if (pool_.is_leased_.exchange(true)) throw DeviceError("memory pool: is in use by another image");
}

MemoryPool::Lease::~Lease() { pool_.is_leased_ = false; }

const MemoryPlan& MemoryPool::plan(const std::string& set) const {
  const auto found = plans_.find(set);
  if (found != plans_.end()) return found->second;
  std::string known;
  for (const auto& entry : plans_) known += (known.empty() ? "" : ", ") + entry.first;
  throw std::invalid_argument("set: \"" + set + "\" was not planned; expected one of " + known);
}

void* MemoryPool::address(const std::string& set, const std::string& region) const {
  const MemoryPlan& planned = plan(set);
  for (std::size_t i = 0; i < planned.regions.size(); ++i) {
    if (planned.regions[i].name == region) {
      return static_cast<unsigned char*>(arena_->data()) + planned.offsets[i];
    }
  }
  throw std::invalid_argument("region: \"" + region + "\" was not planned in set " + set);
}

std::shared_ptr<const HostBlock> MemoryPool::host_memory(const std::string& name,
                                                         std::size_t size_bytes) const {
  const std::lock_guard<std::mutex> lock(host_mutex_);
  std::shared_ptr<const HostBlock>& block = host_memory_[name];
  if (block == nullptr || block->size_bytes() < size_bytes) {
    block = std::make_shared<const HostBlock>(device_, size_bytes);
  }
  return block;
}

}  // namespace sdengine::runtime
