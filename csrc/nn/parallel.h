#pragma once

// Cutting work into one part for each thread. In the instruction set's namespace, because what a
// template becomes is compiled for it.

#include <cstddef>

#include "nn/thread_pool.h"

namespace sdengine::nn::SDENGINE_ISA {

// Calls function(part) on every thread.
template <typename Function>
inline void on_each_thread(ThreadPool& pool, Function& function) {
  pool.run([](void* context, int part) { (*static_cast<Function*>(context))(part); }, &function);
}

struct Range {
  std::ptrdiff_t first, last;
};
inline Range share(std::ptrdiff_t items, int part, int parts) {
  return {items * part / parts, items * (part + 1) / parts};
}

// Calls function(first, last, thread) with each thread's share of the items.
template <typename Function>
inline void in_parallel(ThreadPool& pool, std::ptrdiff_t items, Function function) {
  auto part_of = [&](int part) {
    const Range range = share(items, part, pool.threads());
    if (range.first < range.last) function(range.first, range.last, part);
  };
  on_each_thread(pool, part_of);
}

}  // namespace sdengine::nn::SDENGINE_ISA
