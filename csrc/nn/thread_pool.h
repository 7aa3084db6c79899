#pragma once

#include <memory>
#include <mutex>
#include <string>

namespace sdengine::nn {

// Threads that wait for work that is cut into as many parts. The caller is one of them. A part that
// nobody has begun is taken by whoever is done first: a thread that the system holds back, because
// others use the processors too, holds up at most the part that it is at.
//
// The others start with the first run, and again with the first run in a child process of fork:
// threads exist only in the process that started them. They run on the processors that the caller
// of that run may use.
class ThreadPool {
 public:
  // Throws std::invalid_argument for fewer than 1 thread or more than kMaxThreads.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  static constexpr int kMaxThreads = 4096;  // as `sdengine.load` accepts

  int threads() const { return threads_; }

  // Calls work(context, part) once for each of the parts 0 to threads() - 1, part 0 on the calling
  // thread, and returns when all are done. One caller at a time; see `hold`. Where the system
  // refuses more threads, those that there are take all parts.
  void run(void (*work)(void* context, int part), void* context);

  // The pool of so many threads that the whole process shares, so that several networks do not
  // compete for processors. Those of a place, which any text names, are others: they are run by
  // threads that are bound to its processors.
  static std::shared_ptr<ThreadPool> shared(int threads, const std::string& place = "");

  // To be kept while a caller needs the pool for itself.
  std::unique_lock<std::mutex> hold();

 private:
  class Crew;
  friend class Pools;

  // In a child process, before it runs anything else.
  void leave_crew_to_parent();

  int threads_;
  std::unique_ptr<Crew> crew_;
};

}  // namespace sdengine::nn
