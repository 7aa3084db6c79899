#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Test {
  const char* name;
  void (*run)();
};

inline int run_all(const std::vector<Test>& tests) {
  int failures = 0;
  for (const Test& test : tests) {
    try {
      test.run();
      std::printf("ok      %s\n", test.name);
    } catch (const std::exception& error) {
      std::printf("FAILED  %s: %s\n", test.name, error.what());
      ++failures;
    }
  }
  return failures == 0 ? 0 : 1;
}

inline void near(double actual, double expected, double tolerance, const char* place) {
  // Written so that NaN fails.
  if (!(std::fabs(actual - expected) <= tolerance)) {
    throw Failure(std::string(place) + ": " + std::to_string(actual) + ", expected " +
                  std::to_string(expected));
  }
}

template <typename Error>
void throws(const std::function<void()>& action, const char* place) {
  try {
    action();
  } catch (const Error&) {
    return;
  }
  throw Failure(std::string(place) + ": nothing was thrown");
}

}  // namespace check

#define CHECK_TEXT_2(line) #line
#define CHECK_TEXT(line) CHECK_TEXT_2(line)
#define CHECK_PLACE __FILE__ ":" CHECK_TEXT(__LINE__)
#define CHECK(condition) \
  if (!(condition)) throw check::Failure(CHECK_PLACE ": not true: " #condition)
#define CHECK_NEAR(actual, expected, tolerance) \
  check::near(actual, expected, tolerance, CHECK_PLACE)
#define CHECK_THROWS(Error, action) check::throws<Error>([&] { action; }, CHECK_PLACE)
