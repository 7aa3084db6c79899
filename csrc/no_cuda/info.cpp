// What a build without CUDA offers: the same functions, each saying why it cannot work.

#include "cuda/info.h"

namespace sdengine::cuda {
namespace {

const char* const kReason =
    "this installation's native extension was built without CUDA (build it again where nvcc is "
    "installed, with -C cmake.define.SDENGINE_CUDA=ON)";

[[noreturn]] void refuse() { throw DeviceError(kReason); }

}  // namespace

std::string compiled_version() { return {}; }
std::vector<int> compiled_capabilities() { return {}; }
Availability available(int) { return {false, kReason}; }
DeviceInfo device_info(int) { refuse(); }
std::size_t free_bytes(int) { refuse(); }
void synchronize(int) { refuse(); }

Buffer::Buffer(std::size_t, int) { refuse(); }
Buffer::~Buffer() = default;
void Buffer::upload(const void*, std::size_t) { refuse(); }
void Buffer::download(void*, std::size_t) const { refuse(); }

}  // namespace sdengine::cuda
