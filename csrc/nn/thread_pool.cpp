#include "nn/thread_pool.h"

#include <map>
#include <stdexcept>
#include <string>

namespace sdengine::nn {
namespace {

// About 50 microseconds: operations of a network follow each other faster than that.
constexpr int kSpins = 2000;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument("threads: " + std::to_string(threads) + " is not between 1 and " +
                                std::to_string(kMaxThreads));
  }
  workers_.reserve(threads - 1);
  for (int part = 1; part < threads; ++part) {
    workers_.emplace_back([this] { serve(); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(sleeping_);
    ending_.store(true);
    round_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(void (*work)(void*, int), void* context) {
  if (workers_.empty()) return work(context, 0);
  work_ = work;
  context_ = context;
  unfinished_.store(threads(), std::memory_order_relaxed);
  next_.store(1, std::memory_order_release);
  // Sequentially consistent together with asleep_: either a worker sees the new round before it
  // sleeps, or it is seen here to be about to.
  round_.fetch_add(1);
  if (asleep_.load() > 0) {
    {
      const std::lock_guard<std::mutex> lock(sleeping_);
    }
    wake_.notify_all();
  }
  work(context, 0);
  unfinished_.fetch_sub(1, std::memory_order_release);
  take_parts();
  for (int spins = 0; unfinished_.load(std::memory_order_acquire) > 0; ++spins) {
    if (spins < kSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::serve() {
  std::uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; spins < kSpins && round_.load(std::memory_order_acquire) == seen; ++spins) {
      relax();
    }
    if (round_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(sleeping_);
      asleep_.fetch_add(1);
      wake_.wait(lock, [&] { return round_.load() != seen; });
      asleep_.fetch_sub(1);
    }
    seen = round_.load(std::memory_order_acquire);
    if (ending_.load()) return;
    take_parts();
  }
}

// A worker that comes late, from an earlier round, finds no part left or takes one of the present
// round: what it reads then was written before the parts were given out.
void ThreadPool::take_parts() {
  for (;;) {
    const int part = next_.fetch_add(1, std::memory_order_acq_rel);
    if (part >= threads()) return;
    work_(context_, part);
    unfinished_.fetch_sub(1, std::memory_order_release);
  }
}

std::shared_ptr<ThreadPool> ThreadPool::shared(int threads) {
  static std::mutex guard;
  static std::map<int, std::weak_ptr<ThreadPool>> pools;
  const std::lock_guard<std::mutex> lock(guard);
  std::shared_ptr<ThreadPool> pool = pools[threads].lock();
  if (!pool) {
    pool = std::make_shared<ThreadPool>(threads);
    pools[threads] = pool;
  }
  return pool;
}

}  // namespace sdengine::nn
