#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "nn/processor_gate.h"

using sdengine::nn::ProcessorGate;

namespace {

void rest() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }

void wait_for(const std::atomic<bool>& told) {
  while (!told) std::this_thread::yield();
}

// A thread that passes with so many threads and stays until it is told.
class Passing {
 public:
  explicit Passing(int threads)
      : thread_([this, threads] {
          const ProcessorGate::Pass pass(threads);
          passed = true;
          wait_for(ending_);
        }) {}
  ~Passing() { end(); }
  void end() {
    ending_ = true;
    if (thread_.joinable()) thread_.join();
  }

  std::atomic<bool> passed{false};

 private:
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

void without_a_number_all_pass() {
  ProcessorGate::set_processors(0);
  Passing first(1000), second(1000);
  wait_for(first.passed);
  wait_for(second.passed);
}

void those_beyond_the_processors_wait() {
  ProcessorGate::set_processors(4);
  Passing first(1), second(2);
  wait_for(first.passed);
  wait_for(second.passed);
  Passing third(2), fourth(1);  // both together do not fit
  rest();
  CHECK(!third.passed || !fourth.passed);
  second.end();
  wait_for(third.passed);
  wait_for(fourth.passed);
}

void more_than_there_are_pass_alone() {
  ProcessorGate::set_processors(2);
  Passing small(1);
  wait_for(small.passed);
  Passing large(8);
  rest();
  CHECK(!large.passed);
  small.end();
  wait_for(large.passed);
  Passing other(1);
  rest();
  CHECK(!other.passed);
  large.end();
  wait_for(other.passed);
}

void nobody_is_overtaken() {
  ProcessorGate::set_processors(2);
  auto first = std::make_unique<Passing>(1);
  wait_for(first->passed);
  Passing large(2);
  rest();  // it waits
  Passing small(1);
  rest();
  CHECK(!large.passed && !small.passed);
  first.reset();
  wait_for(large.passed);
  CHECK(!small.passed);
  large.end();
  wait_for(small.passed);
}

void never_more_compute_than_may() {
  ProcessorGate::set_processors(3);
  std::atomic<int> computing{0}, most{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, count = i % 3 + 1] {
      for (int round = 0; round < 300; ++round) {
        const ProcessorGate::Pass pass(count);
        const int now = computing += count;
        int seen = most;
        while (now > seen && !most.compare_exchange_weak(seen, now)) {
        }
        std::this_thread::yield();
        computing -= count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(computing == 0 && most > 0 && most <= 3);
}

// ThreadSanitizer lets no forked process start threads.
#ifndef __SANITIZE_THREAD__
void a_child_does_not_wait_for_who_had_passed() {
  ProcessorGate::set_processors(2);
  Passing first(2);
  wait_for(first.passed);
  Passing waiting(1);
  rest();
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    {
      const ProcessorGate::Pass pass(2);
    }
    const ProcessorGate::Pass one(1);
    std::atomic<bool> passed{false};
    std::thread other([&] {
      const ProcessorGate::Pass two(2);  // the child knows how many processors there are
      passed = true;
    });
    rest();
    if (passed) _exit(1);
    other.detach();
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  first.end();
  CHECK(status == 0);
}
#endif

}  // namespace

int main() {
  return check::run_all({
      {"without_a_number_all_pass", without_a_number_all_pass},
      {"those_beyond_the_processors_wait", those_beyond_the_processors_wait},
      {"more_than_there_are_pass_alone", more_than_there_are_pass_alone},
      {"nobody_is_overtaken", nobody_is_overtaken},
      {"never_more_compute_than_may", never_more_compute_than_may},
#ifndef __SANITIZE_THREAD__
      {"a_child_does_not_wait_for_who_had_passed", a_child_does_not_wait_for_who_had_passed},
#endif
  });
}
