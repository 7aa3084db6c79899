#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace sdengine::nn {

// Threads that wait for work that is cut into as many parts. The caller is one of them. A part that
// nobody has begun is taken by whoever is done first: a thread that the system holds back, because
// others use the processors too, holds up at most the part that it is at.
class ThreadPool {
 public:
  // Throws std::invalid_argument for fewer than 1 thread or more than kMaxThreads.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  static constexpr int kMaxThreads = 256;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(context, part) once for each of the parts 0 to threads() - 1, part 0 on the calling
  // thread, and returns when all are done. One caller at a time; see `exclusive`.
  void run(void (*work)(void* context, int part), void* context);

  // The pool of so many threads that the whole process shares, so that several networks do not
  // compete for processors.
  static std::shared_ptr<ThreadPool> shared(int threads);

  // To be held while a caller needs the pool for itself.
  std::mutex& exclusive() { return exclusive_; }

 private:
  void serve();
  void take_parts();

  std::mutex exclusive_;
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

}  // namespace sdengine::nn
