#pragma once

#include <cstddef>
#include <string>

#include "common/errors.h"

namespace sdengine::runtime {

// The caller cancelled what was running.
class Cancelled : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Memory that would be needed is more than may be had; nothing was allocated.
class MemoryBudgetError : public OutOfMemoryError {
 public:
  MemoryBudgetError(const std::string& what_for, std::size_t requested, std::size_t available,
                    std::size_t cap)
      : OutOfMemoryError(what_for + " needs " + std::to_string(requested) + " bytes; " +
                         std::to_string(available) + " are available" +
                         (cap == 0 ? "" : " under a cap of " + std::to_string(cap))),
        requested_bytes(requested),
        available_bytes(available),
        cap_bytes(cap) {}

  const std::size_t requested_bytes;
  const std::size_t available_bytes;
  const std::size_t cap_bytes;  // 0 where none was set
};

}  // namespace sdengine::runtime
