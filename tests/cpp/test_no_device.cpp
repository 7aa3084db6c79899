// Built without CUDA: every entry says why it cannot work instead of doing nothing.

#include "check.h"
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace {

namespace cuda = sdengine::cuda;

void says_what_is_missing() {
  if (cuda::available().usable) return;
  CHECK(!cuda::available().reason.empty());
  CHECK_THROWS(sdengine::DeviceError, cuda::Buffer(16));
  CHECK_THROWS(sdengine::DeviceError, cuda::device_info(0));
  CHECK_THROWS(sdengine::DeviceError, cuda::synchronize(0));
  CHECK_THROWS(sdengine::DeviceError, cuda::make_device(0));
  CHECK_THROWS(sdengine::DeviceError,
               cuda::guided_step(nullptr, nullptr, nullptr, 1, false, 1.0,
                                 cuda::StepTable{nullptr, nullptr, 1}, nullptr, 0));
  CHECK_THROWS(sdengine::DeviceError,
               cuda::scale_duplicate(nullptr, 1, nullptr, nullptr, 1, nullptr, 0));
  CHECK_THROWS(sdengine::DeviceError, cuda::images_to_uint8(nullptr, 1, 1, nullptr, nullptr, 0));
  CHECK_THROWS(sdengine::DeviceError,
               cuda::images_to_uint8(nullptr, sdengine::runtime::DataType::kFloat16, 1, 1, nullptr,
                                     nullptr, 0));
}

}  // namespace

int main() { return check::run_all({{"says_what_is_missing", says_what_is_missing}}); }
