// What a build without CUDA offers: the same functions, each saying why it cannot work.

#include "cuda/kernels.h"

namespace sdengine::cuda {
namespace {

const char* const kReason =
    "this installation's native extension was built without CUDA (build it again where nvcc is "
    "installed, with -C cmake.define.SDENGINE_CUDA=ON)";

[[noreturn]] void refuse() { throw DeviceError(kReason); }

}  // namespace

std::string compiled_version() { return {}; }
Availability available() { return {false, kReason}; }
DeviceInfo device_info(int) { refuse(); }
void synchronize(Stream) { refuse(); }

Buffer::Buffer(std::size_t) { refuse(); }
Buffer::~Buffer() = default;
void Buffer::upload(const void*, std::size_t) { refuse(); }
void Buffer::download(void*, std::size_t) const { refuse(); }

void guided_step(float*, const float*, const float*, std::size_t, bool, double, const StepTable&,
                 std::int32_t*, Stream) {
  refuse();
}

void scale_duplicate(const float*, std::size_t, const double*, const std::int32_t*, std::size_t,
                     float*, Stream) {
  refuse();
}

void images_to_uint8(const float*, std::size_t, std::size_t, std::uint8_t*, std::int32_t*, Stream) {
  refuse();
}

void images_to_uint8(const void*, runtime::DataType, std::size_t, std::size_t, std::uint8_t*,
                     std::int32_t*, Stream) {
  refuse();
}

}  // namespace sdengine::cuda
