#include "nn/processor_gate.h"

#include <pthread.h>

#include <condition_variable>
#include <cstdint>
#include <limits>
#include <mutex>

namespace sdengine::nn {
namespace {

class Gate {
 public:
  static Gate& get() { return *current(); }

  void set_processors(int threads) {
    const std::lock_guard<std::mutex> lock(guard_);
    processors_ = threads > 0 ? threads : std::numeric_limits<int>::max();
    changed_.notify_all();
  }

  void enter(int threads) {
    std::unique_lock<std::mutex> lock(guard_);
    const std::uint64_t ticket = last_ticket_++;
    changed_.wait(lock, [&] {
      return ticket == next_ticket_ && (used_ == 0 || threads <= processors_ - used_);
    });
    used_ += threads;
    ++next_ticket_;
    changed_.notify_all();
  }

  void leave(int threads) {
    const std::lock_guard<std::mutex> lock(guard_);
    used_ -= threads;
    changed_.notify_all();
  }

 private:
  Gate() = default;

  static Gate*& current() {
    static Gate* gate = [] {
      pthread_atfork(nullptr, nullptr, &in_child);
      return new Gate;  // never freed: threads may outlive static objects
    }();
    return gate;
  }

  // Who had passed, or waited, is not there; nor is who would give the lock back.
  static void in_child() {
    const int processors = current()->processors_;
    current() = new Gate;
    current()->processors_ = processors;
  }

  std::mutex guard_;
  std::condition_variable changed_;
  int processors_ = std::numeric_limits<int>::max();
  int used_ = 0;
  std::uint64_t next_ticket_ = 0, last_ticket_ = 0;
};

}  // namespace

void ProcessorGate::set_processors(int threads) { Gate::get().set_processors(threads); }

ProcessorGate::Pass::Pass(int threads) : threads_(threads) { Gate::get().enter(threads_); }

ProcessorGate::Pass::~Pass() { Gate::get().leave(threads_); }

}  // namespace sdengine::nn
