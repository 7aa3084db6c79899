#include "cuda/device.h"

#include "cuda/info.h"

namespace sdengine::cuda {

std::shared_ptr<runtime::Device> make_device(int index) {
  throw DeviceError(available(index).reason);
}

}  // namespace sdengine::cuda
