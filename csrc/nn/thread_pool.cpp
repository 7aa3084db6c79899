#include "nn/thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

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

// The threads of a pool but the caller's, and all that they wait on.
class ThreadPool::Crew {
 public:
  explicit Crew(int threads) : threads_(threads) {}
  ~Crew();

  void run(void (*work)(void*, int), void* context);

  std::mutex exclusive;

 private:
  void start();
  void serve();
  void take_parts();

  const int threads_;
  bool started_ = false;
  std::vector<std::thread> workers_;
  void (*work_)(void*, int) = nullptr;
  void* context_ = nullptr;
  std::atomic<std::uint32_t> round_{0};
  std::atomic<int> next_{0};  // part to be taken
  std::atomic<int> unfinished_{0};
  std::atomic<bool> ending_{false};
  std::atomic<int> asleep_{0};
  std::mutex sleeping_;
  std::condition_variable wake_;
};

ThreadPool::Crew::~Crew() {
  {
    const std::lock_guard<std::mutex> lock(sleeping_);
    ending_.store(true);
    round_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Crew::start() {
  started_ = true;
  workers_.reserve(threads_ - 1);
  try {
    while (static_cast<int>(workers_.size()) < threads_ - 1) {
      workers_.emplace_back([this] { serve(); });
    }
  } catch (const std::system_error&) {
    // The process may have no more threads.
  }
}

void ThreadPool::Crew::run(void (*work)(void*, int), void* context) {
  if (threads_ == 1) return work(context, 0);
  if (!started_) start();
  work_ = work;
  context_ = context;
  unfinished_.store(threads_, std::memory_order_relaxed);
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

void ThreadPool::Crew::serve() {
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
void ThreadPool::Crew::take_parts() {
  for (;;) {
    const int part = next_.fetch_add(1, std::memory_order_acq_rel);
    if (part >= threads_) return;
    work_(context_, part);
    unfinished_.fetch_sub(1, std::memory_order_release);
  }
}

// All pools of the process, for fork: held still while the process is copied.
class Pools {
 public:
  static Pools& get() {
    static Pools* const pools = new Pools;  // never freed: threads may outlive static objects
    return *pools;
  }

  void add(ThreadPool* pool) {
    const std::lock_guard<std::mutex> lock(guard_);
    all_.insert(pool);
  }

  void remove(ThreadPool* pool) {
    const std::lock_guard<std::mutex> lock(guard_);
    all_.erase(pool);
  }

  std::shared_ptr<ThreadPool> shared(int threads, const std::string& place) {
    const std::lock_guard<std::mutex> lock(sharing_);
    std::weak_ptr<ThreadPool>& known = shared_[{threads, place}];
    std::shared_ptr<ThreadPool> pool = known.lock();
    if (!pool) {
      pool = std::make_shared<ThreadPool>(threads);
      known = pool;
    }
    return pool;
  }

 private:
  Pools() { pthread_atfork(&before_fork, &in_parent, &in_child); }

  static void before_fork() {
    get().sharing_.lock();
    get().guard_.lock();
  }

  static void in_parent() {
    get().guard_.unlock();
    get().sharing_.unlock();
  }

  static void in_child() {
    for (ThreadPool* pool : get().all_) pool->leave_crew_to_parent();
    in_parent();
  }

  std::mutex sharing_, guard_;  // taken in this order
  std::map<std::pair<int, std::string>, std::weak_ptr<ThreadPool>> shared_;
  std::set<ThreadPool*> all_;
};

ThreadPool::ThreadPool(int threads) : threads_(threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument("threads: " + std::to_string(threads) + " is not between 1 and " +
                                std::to_string(kMaxThreads));
  }
  crew_ = std::make_unique<Crew>(threads);
  Pools::get().add(this);
}

ThreadPool::~ThreadPool() { Pools::get().remove(this); }

void ThreadPool::run(void (*work)(void*, int), void* context) { crew_->run(work, context); }

std::shared_ptr<ThreadPool> ThreadPool::shared(int threads, const std::string& place) {
  return Pools::get().shared(threads, place);
}

std::unique_lock<std::mutex> ThreadPool::hold() {
  return std::unique_lock<std::mutex>(crew_->exclusive);
}

void ThreadPool::leave_crew_to_parent() {
  // Not freed: its threads are not there to be joined, and its locks may be held for ever.
  static_cast<void>(crew_.release());
  crew_ = std::make_unique<Crew>(threads_);
}

}  // namespace sdengine::nn
