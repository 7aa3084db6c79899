#include "python/own_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <utility>

namespace py = pybind11;

namespace sdengine::python {
namespace {

constexpr std::size_t kLargePage = std::size_t{2} << 20;

struct Current {
  std::mutex changing;
  std::weak_ptr<SparePages> spare;
};
Current& current() {
  static auto* const found = new Current;  // never freed: arrays may outlive the module
  return *found;
}

std::shared_ptr<SparePages> current_spare() {
  const std::lock_guard lock(current().changing);
  auto found = current().spare.lock();
  return found && found->is_own() ? found : nullptr;
}

}  // namespace

Pages::Pages(std::size_t bytes) : bytes_(bytes) {
  std::size_t left = bytes + kLargePage;
  mapped_ = mmap(nullptr, left, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped_ == MAP_FAILED) throw std::bad_alloc();
  data_ = mapped_;
  std::align(kLargePage, bytes, data_, left);
  madvise(data_, bytes, MADV_HUGEPAGE);
}

Pages::~Pages() { munmap(mapped_, bytes_ + kLargePage); }

bool SparePages::is_own() const { return process_ == getpid(); }

std::shared_ptr<SparePages> SparePages::make() {
  if (auto found = current_spare()) return found;
  const auto made = std::make_shared<SparePages>();
  const std::lock_guard lock(current().changing);
  current().spare = made;
  return made;
}

std::unique_ptr<Pages> SparePages::take(std::size_t bytes) {
  if (const auto spare = current_spare()) {
    const std::lock_guard lock(spare->changing_);
    for (auto& one : spare->kept_) {
      // No more than a tenth of it is wasted.
      if (one->bytes() < bytes || one->bytes() - bytes > one->bytes() / 10) continue;
      std::swap(one, spare->kept_.back());
      auto found = std::move(spare->kept_.back());
      spare->kept_.pop_back();
      return found;
    }
  }
  return std::make_unique<Pages>(bytes);
}

void SparePages::put(std::unique_ptr<Pages> pages) {
  if (const auto spare = current_spare()) {
    const std::lock_guard lock(spare->changing_);
    spare->kept_.push_back(std::move(pages));
  }
}

py::array_t<std::uint8_t> own_pages(std::size_t bytes) {
  auto pages = SparePages::take(bytes);
  void* const data = pages->data();
  const py::capsule held(pages.get(), [](void* given) {
    SparePages::put(std::unique_ptr<Pages>(static_cast<Pages*>(given)));
  });
  pages.release();
  return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(bytes),
                                   static_cast<const std::uint8_t*>(data), held);
}

}  // namespace sdengine::python
