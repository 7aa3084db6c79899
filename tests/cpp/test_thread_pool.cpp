#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "nn/thread_pool.h"

using sdengine::nn::ThreadPool;

namespace {

struct Counts {
  std::vector<int> of;
};

void count(void* context, int part) { ++static_cast<Counts*>(context)->of[part]; }

void every_part_is_called_once_a_round() {
  for (int threads = 1; threads <= 8; ++threads) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    Counts counts{std::vector<int>(threads)};
    for (int round = 0; round < 2000; ++round) pool.run(&count, &counts);
    for (int calls : counts.of) CHECK(calls == 2000);
  }
}

void threads_wake_up_after_they_slept() {
  ThreadPool pool(3);
  Counts counts{std::vector<int>(3)};
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    pool.run(&count, &counts);
  }
  for (int calls : counts.of) CHECK(calls == 20);
}

void what_was_written_before_a_round_is_seen_in_it() {
  struct Context {
    int given = 0;
    std::vector<int> taken;
  } context{0, std::vector<int>(4)};
  ThreadPool pool(4);
  for (int round = 1; round <= 1000; ++round) {
    context.given = round;
    pool.run(
        [](void* opaque, int part) {
          auto& seen = *static_cast<Context*>(opaque);
          seen.taken[part] = seen.given;
        },
        &context);
    for (int taken : context.taken) CHECK(taken == round);
  }
}

void pools_are_shared_by_their_size() {
  const auto two = ThreadPool::shared(2);
  CHECK(two == ThreadPool::shared(2));
  CHECK(two != ThreadPool::shared(3));
  CHECK(two != ThreadPool::shared(2, "0-1"));
  const auto placed = ThreadPool::shared(2, "0-1");
  CHECK(placed == ThreadPool::shared(2, "0-1"));
}

void bad_sizes_are_refused() {
  for (int threads : {0, -1, ThreadPool::kMaxThreads + 1}) {
    CHECK_THROWS(std::invalid_argument, ThreadPool pool(threads));
  }
}

// ThreadSanitizer lets no forked process start threads.
#ifndef __SANITIZE_THREAD__
// Ends a child that hangs; its status is 0 if the work gave true.
template <typename Work>
bool works_in_a_child(Work work) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(work() ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return status == 0;
}

void a_pool_works_in_a_child_process() {
  auto pool = std::make_unique<ThreadPool>(3);
  Counts counts{std::vector<int>(3)};
  const auto counts_on = [&] {
    counts.of.assign(3, 0);
    for (int round = 0; round < 100; ++round) pool->run(&count, &counts);
    return counts.of == std::vector<int>{100, 100, 100};
  };
  CHECK(works_in_a_child(counts_on));  // no thread has started
  CHECK(counts_on());
  CHECK(works_in_a_child(counts_on));  // they spin
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  CHECK(works_in_a_child(counts_on));  // they sleep
  CHECK(works_in_a_child([&] { return pool.reset(), true; }));
  CHECK(counts_on());
}

void a_child_does_not_wait_for_who_held_the_pool() {
  ThreadPool pool(2);
  std::atomic<bool> held{false}, ending{false};
  std::thread holder([&] {
    const auto lock = pool.hold();
    held = true;
    while (!ending) std::this_thread::yield();
  });
  while (!held) std::this_thread::yield();
  CHECK(works_in_a_child([&] {
    const auto lock = pool.hold();
    Counts counts{std::vector<int>(2)};
    pool.run(&count, &counts);
    return counts.of == std::vector<int>{1, 1};
  }));
  ending = true;
  holder.join();
}
#endif

}  // namespace

int main() {
  return check::run_all({
      {"every_part_is_called_once_a_round", every_part_is_called_once_a_round},
      {"threads_wake_up_after_they_slept", threads_wake_up_after_they_slept},
      {"what_was_written_before_a_round_is_seen_in_it",
       what_was_written_before_a_round_is_seen_in_it},
      {"pools_are_shared_by_their_size", pools_are_shared_by_their_size},
      {"bad_sizes_are_refused", bad_sizes_are_refused},
#ifndef __SANITIZE_THREAD__
      {"a_pool_works_in_a_child_process", a_pool_works_in_a_child_process},
      {"a_child_does_not_wait_for_who_held_the_pool", a_child_does_not_wait_for_who_held_the_pool},
#endif
  });
}
