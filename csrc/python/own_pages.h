#pragma once

#include <pybind11/numpy.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace sdengine::python {

// Anonymous memory that begins where a large page does. Pages that nobody touched take none.
class Pages {
 public:
  explicit Pages(std::size_t bytes);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  void* mapped_;
  void* data_;
};

// Keeps, for as long as it lives, pages that are freed meanwhile, for arrays that are made
// meanwhile: those of a set of weights become those of the next. What the system gives has to be
// zeroed, and in a virtual machine perhaps fetched from its host, which takes as long as filling
// it.
class SparePages {
 public:
  static std::shared_ptr<SparePages> make();
  static std::unique_ptr<Pages> take(std::size_t bytes);
  static void put(std::unique_ptr<Pages> pages);
  // Whether this process made it: what a fork copied may have lost who would free it.
  bool is_own() const;

 private:
  const int process_ = getpid();
  std::mutex changing_;
  std::vector<std::unique_ptr<Pages>> kept_;
};

// Returns bytes of any content in large pages that go back to the system with the last array that
// shows them: what malloc keeps of a swap's weights would be of no use.
pybind11::array_t<std::uint8_t> own_pages(std::size_t bytes);

}  // namespace sdengine::python
