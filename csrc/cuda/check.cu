#include <map>
#include <mutex>
#include <string>

#include "cuda/check.h"

namespace sdengine::cuda {
namespace {

// What first failed on each GPU that is lost.
struct LostGpus {
  std::mutex mutex;
  std::map<int, std::string> messages;
};

LostGpus& lost_gpus() {
  static LostGpus the_gpus;
  return the_gpus;
}

// The one that the calling thread chose last: CUDA would not tell after such an error.
thread_local int current_gpu = 0;

// Errors after which, as CUDA's reference says of them, a process has to be launched anew. By
// number, since older toolkits lack some of the names: ECC and NVLink errors, contained errors,
// faults of kernels (addresses, time limit, assertions, instructions, program counter, tensor
// memory), a failed device beyond CUDA's reach, and what CUDA calls unknown.
bool is_sticky(cudaError_t status) {
  const int number = static_cast<int>(status);
  return number == 214 || number == 220 || number == 226 || number == 700 || number == 702 ||
         number == 710 || (number >= 714 && number <= 721 && number != 720) || number == 911 ||
         number == 999;
}

}  // namespace

void refuse_lost(int index) {
  LostGpus& lost = lost_gpus();
  const std::lock_guard<std::mutex> lock(lost.mutex);
  const auto found = lost.messages.find(index);
  if (found != lost.messages.end()) throw DeviceLostError(found->second);
}

void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  // An error stays behind for the next cudaGetLastError, where it would be taken for a launch's.
  cudaGetLastError();
  const std::string message = std::string(doing) + ": CUDA says \"" + cudaGetErrorString(status) +
                              "\" (" + cudaGetErrorName(status) + ")";
  if (status == cudaErrorMemoryAllocation) throw OutOfMemoryError(message);
  if (!is_sticky(status)) throw DeviceError(message);
  {
    LostGpus& lost = lost_gpus();
    const std::lock_guard<std::mutex> lock(lost.mutex);
    lost.messages.emplace(current_gpu, message + "; this process cannot use GPU " +
                                           std::to_string(current_gpu) +
                                           " any more: restart the process");
  }
  refuse_lost(current_gpu);
}

void use_gpu(int index) {
  current_gpu = index;
  refuse_lost(index);
  check(cudaSetDevice(index), "choosing the GPU");
}

}  // namespace sdengine::cuda
