#include "cuda/device.h"

#include "cuda/info.h"

namespace sdengine::cuda {

std::shared_ptr<runtime::Device> make_device(int) { throw DeviceError(available().reason); }

}  // namespace sdengine::cuda
