#include <cuda_runtime_api.h>

#include <stdexcept>

#include "cuda/check.h"
#include "cuda/info.h"

namespace sdengine::cuda {
namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

std::string compiled_version() { return version_text(CUDART_VERSION); }

Availability available() {
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
  try {
    const DeviceInfo info = device_info(0);
    return {true, info.name + ", compute capability " +
                      std::to_string(info.compute_capability_major) + "." +
                      std::to_string(info.compute_capability_minor)};
  } catch (const DeviceError& error) {
    return {false, error.what()};
  }
}

DeviceInfo device_info(int device) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "reading the GPU's properties");
  int current = 0;
  check(cudaGetDevice(&current), "reading the current GPU");
  DeviceInfo info{
      properties.name, properties.major, properties.minor, properties.multiProcessorCount, 0, 0};
  check(cudaSetDevice(device), "choosing the GPU");
  const cudaError_t status = cudaMemGetInfo(&info.free_bytes, &info.total_bytes);
  check(cudaSetDevice(current), "choosing the GPU");
  check(status, "reading the GPU's memory");
  return info;
}

void synchronize() { check(cudaStreamSynchronize(nullptr), "waiting for the GPU"); }

Buffer::Buffer(std::size_t size_bytes) : size_bytes_(size_bytes) {
  const std::string doing = "allocating " + std::to_string(size_bytes) + " bytes on the GPU";
  check(cudaMalloc(&data_, size_bytes), doing.c_str());
}

Buffer::~Buffer() { cudaFree(data_); }

void Buffer::upload(const void* host, std::size_t size_bytes) {
  if (size_bytes > size_bytes_) {
    throw std::invalid_argument("array: has " + std::to_string(size_bytes) + " bytes, the buffer " +
                                std::to_string(size_bytes_));
  }
  check(cudaMemcpy(data_, host, size_bytes, cudaMemcpyHostToDevice), "copying to the GPU");
}

void Buffer::download(void* host, std::size_t size_bytes) const {
  if (size_bytes > size_bytes_) {
    throw std::invalid_argument("array: has " + std::to_string(size_bytes) + " bytes, the buffer " +
                                std::to_string(size_bytes_));
  }
  check(cudaMemcpy(host, data_, size_bytes, cudaMemcpyDeviceToHost), "copying from the GPU");
}

}  // namespace sdengine::cuda
