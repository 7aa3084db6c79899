// Built without CUDA: every entry says why it cannot work instead of doing nothing.

#include "check.h"
#include "cuda/device.h"
#include "cuda/info.h"

namespace {

namespace cuda = sdengine::cuda;

void says_what_is_missing() {
  if (cuda::available(0).usable) return;
  CHECK(!cuda::available(0).reason.empty());
  CHECK_THROWS(sdengine::DeviceError, cuda::Buffer(16, 0));
  CHECK_THROWS(sdengine::DeviceError, cuda::device_info(0));
  CHECK_THROWS(sdengine::DeviceError, cuda::synchronize(0));
  CHECK_THROWS(sdengine::DeviceError, cuda::make_device(0));
}

}  // namespace

int main() { return check::run_all({{"says_what_is_missing", says_what_is_missing}}); }
