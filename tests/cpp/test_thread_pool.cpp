#include <atomic>
#include <chrono>
#include <stdexcept>

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
}

void bad_sizes_are_refused() {
  for (int threads : {0, -1, ThreadPool::kMaxThreads + 1}) {
    CHECK_THROWS(std::invalid_argument, ThreadPool pool(threads));
  }
}

}  // namespace

int main() {
  return check::run_all({
      {"every_part_is_called_once_a_round", every_part_is_called_once_a_round},
      {"threads_wake_up_after_they_slept", threads_wake_up_after_they_slept},
      {"what_was_written_before_a_round_is_seen_in_it",
       what_was_written_before_a_round_is_seen_in_it},
      {"pools_are_shared_by_their_size", pools_are_shared_by_their_size},
      {"bad_sizes_are_refused", bad_sizes_are_refused},
  });
}
