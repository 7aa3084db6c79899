#include <cuda_runtime_api.h>

#include <algorithm>
#include <stdexcept>

#include "cuda/check.h"
#include "cuda/info.h"

namespace sdengine::cuda {
namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string capability_text(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

bool has_kernels_for(int capability) {
  const std::vector<int> built = compiled_capabilities();
  return std::any_of(built.begin(), built.end(), [=](int least) { return least <= capability; });
}

}  // namespace

std::string compiled_version() { return version_text(CUDART_VERSION); }

std::vector<int> compiled_capabilities() {
  // nvcc's list of what it compiles for, such as 750,800.
  std::vector<int> found = {__CUDA_ARCH_LIST__};
  for (int& architecture : found) architecture /= 10;
  return found;
}

Availability available(int device) {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) return {false, "no NVIDIA driver is installed"};
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) {
    return {false, "the NVIDIA driver supports CUDA " + version_text(driver) +
                       "; this build needs " + compiled_version()};
  }
  if (status != cudaSuccess) return {false, cudaGetErrorString(status)};
  if (count == 0) return {false, "no NVIDIA GPU was found"};
  if (device < 0 || device >= count) {
    return {false, "GPU " + std::to_string(device) + " is not there; there are " +
                       std::to_string(count) + ", from 0"};
  }
  try {
    refuse_lost(device);
    const DeviceInfo info = device_info(device);
    const std::string found =
        info.name + ", compute capability " + capability_text(info.compute_capability);
    if (has_kernels_for(info.compute_capability)) return {true, found};
    std::string built;
    for (const int capability : compiled_capabilities()) {
      built += (built.empty() ? "" : ", ") + capability_text(capability);
    }
    return {false,
            found + ": this build has no kernels for it, only for " + built + " and later ones"};
  } catch (const DeviceError& error) {
    return {false, error.what()};
  }
}

DeviceInfo device_info(int device) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "reading the GPU's properties");
  return {properties.name, 10 * properties.major + properties.minor, properties.multiProcessorCount,
          properties.totalGlobalMem};
}

std::size_t free_bytes(int device) {
  use_gpu(device);
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "reading the GPU's memory");
  return free;
}

void synchronize(int device) {
  use_gpu(device);
  check(cudaStreamSynchronize(nullptr), "waiting for the GPU");
}

Buffer::Buffer(std::size_t size_bytes, int device) : size_bytes_(size_bytes), device_(device) {
  use_gpu(device_);
  const std::string doing = "allocating " + std::to_string(size_bytes) + " bytes on the GPU";
  check(cudaMalloc(&data_, size_bytes), doing.c_str());
}

Buffer::~Buffer() { cudaFree(data_); }

void Buffer::upload(const void* host, std::size_t size_bytes) {
  if (size_bytes > size_bytes_) {
    throw std::invalid_argument("array: has " + std::to_string(size_bytes) + " bytes, the buffer " +
                                std::to_string(size_bytes_));
  }
  use_gpu(device_);
  check(cudaMemcpy(data_, host, size_bytes, cudaMemcpyHostToDevice), "copying to the GPU");
  // The copy may have read the array without having reached the GPU, and other streams do not wait.
  check(cudaStreamSynchronize(nullptr), "copying to the GPU");
}

void Buffer::download(void* host, std::size_t size_bytes) const {
  if (size_bytes > size_bytes_) {
    throw std::invalid_argument("array: has " + std::to_string(size_bytes) + " bytes, the buffer " +
                                std::to_string(size_bytes_));
  }
  use_gpu(device_);
  check(cudaMemcpy(host, data_, size_bytes, cudaMemcpyDeviceToHost), "copying from the GPU");
}

}  // namespace sdengine::cuda
