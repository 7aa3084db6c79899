#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/handles.h"
#include "runtime/memory_plan.h"

namespace sdengine::runtime {

// One arena for all that a bundle can be asked for. Each set of regions (one image size and batch)
// has its own plan in the same memory, since one set runs at a time; addresses never change, so
// captured graphs stay valid.
class MemoryPool {
 public:
  using Sets = std::map<std::string, std::vector<Region>>;

  // Plans everything, then allocates once.
  // Throws MemoryBudgetError, with nothing allocated, when the largest set is over the cap (0: no
  // cap) or over what the device has free; std::invalid_argument without sets or for a bad region.
  MemoryPool(std::shared_ptr<Device> device, const Sets& sets, std::size_t cap_bytes);

  // Marks a set as in use until it goes out of scope.
  // Throws DeviceError while another lease lives, std::invalid_argument for an unknown set.
  class Lease {
   public:
    Lease(MemoryPool& pool, const std::string& set);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

   private:
    MemoryPool& pool_;
  };

  // Where a region of a set lies, leased or not.
  // Throws std::invalid_argument for a set or region that was not planned.
  void* address(const std::string& set, const std::string& region) const;

  // Throws std::invalid_argument for a set that was not planned.
  const MemoryPlan& plan(const std::string& set) const;

  // Memory of the host under a name, of so many bytes at least. It is allocated once and kept:
  // whoever asks for more gets another, and who had the smaller one keeps that. Who shares a name
  // takes turns.
  std::shared_ptr<const HostBlock> host_memory(const std::string& name,
                                               std::size_t size_bytes) const;

  const std::shared_ptr<Device>& device() const { return device_; }

 private:
  std::shared_ptr<Device> device_;
  std::map<std::string, MemoryPlan> plans_;
  std::unique_ptr<Block> arena_;
  std::atomic<bool> is_leased_{false};
  mutable std::mutex host_mutex_;  // guards the next
  mutable std::map<std::string, std::shared_ptr<const HostBlock>> host_memory_;
};

}  // namespace sdengine::runtime
