#include <cuda_runtime.h>

#include "cuda/check.h"
#include "cuda/device.h"
#include "cuda/info.h"
#include "cuda/step_kernels.h"
#include "cuda/upload_ring.h"
#include "runtime/errors.h"

namespace sdengine::cuda {
namespace {

using runtime::RawHandle;

template <typename Pointer>
Pointer as(RawHandle handle) {
  return reinterpret_cast<Pointer>(handle);
}

template <typename Pointer>
RawHandle raw(Pointer pointer) {
  return reinterpret_cast<RawHandle>(pointer);
}

// For cleaning up, where nothing can be done about a failure but not to leave it to the next check.
void forget_errors(cudaError_t status) noexcept {
  if (status != cudaSuccess) cudaGetLastError();
}

class CudaDevice final : public runtime::Device {
 public:
  explicit CudaDevice(int index) : index_(index), name_(device_info(index).name) {
    use();
    load_step_kernels();
    load_pixel_kernels();
    load_noise_kernels();
  }

  void make_current() const override { use(); }

  std::string name() const override { return name_; }

  runtime::MemoryInfo memory_info() const override {
    use();
    runtime::MemoryInfo info{};
    check(cudaMemGetInfo(&info.free_bytes, &info.total_bytes), "reading the GPU's memory");
    return info;
  }

  // Portable: of use to every GPU.
  void* allocate_host(std::size_t size_bytes) override {
    use();
    void* block = nullptr;
    check(cudaHostAlloc(&block, size_bytes, cudaHostAllocPortable), "pinning memory of the host");
    return block;
  }

  void release_host(void* block) noexcept override { forget_errors(cudaFreeHost(block)); }

  RawHandle create_stream() override {
    use();
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
    return raw(stream);
  }

  void destroy_stream(RawHandle stream) noexcept override {
    forget_errors(cudaStreamDestroy(as<cudaStream_t>(stream)));
  }

  void synchronize(RawHandle stream) override {
    use();
    check(cudaStreamSynchronize(as<cudaStream_t>(stream)), "waiting for a stream");
  }

  RawHandle create_event() override {
    use();
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
    return raw(event);
  }

  void destroy_event(RawHandle event) noexcept override {
    forget_errors(cudaEventDestroy(as<cudaEvent_t>(event)));
  }

  void record(RawHandle event, RawHandle stream) override {
    use();
    check(cudaEventRecord(as<cudaEvent_t>(event), as<cudaStream_t>(stream)), "recording an event");
  }

  bool is_done(RawHandle event) override {
    use();
    const cudaError_t status = cudaEventQuery(as<cudaEvent_t>(event));
    if (status != cudaErrorNotReady) check(status, "asking for an event");
    return status == cudaSuccess;
  }

  void wait_for(RawHandle event) override {
    use();
    check(cudaEventSynchronize(as<cudaEvent_t>(event)), "waiting for an event");
  }

  void upload(void* target, const void* host, std::size_t size_bytes, RawHandle stream) override {
    use();
    ring_.copy(target, host, size_bytes, as<cudaStream_t>(stream));
  }

  void upload_pinned(void* target, const void* host, std::size_t size_bytes,
                     RawHandle stream) override {
    use();
    check(
        cudaMemcpyAsync(target, host, size_bytes, cudaMemcpyHostToDevice, as<cudaStream_t>(stream)),
        "copying to the GPU");
  }

  void download(void* host, const void* source, std::size_t size_bytes, RawHandle stream) override {
    use();
    check(
        cudaMemcpyAsync(host, source, size_bytes, cudaMemcpyDeviceToHost, as<cudaStream_t>(stream)),
        "copying from the GPU");
  }

  void fill(void* target, std::uint8_t byte, std::size_t size_bytes, RawHandle stream) override {
    use();
    check(cudaMemsetAsync(target, byte, size_bytes, as<cudaStream_t>(stream)),
          "filling memory of the GPU");
  }

  // Thread-local: what other threads do on the GPU meanwhile cannot break the capture.
  void begin_capture(RawHandle stream) override {
    use();
    check(cudaStreamBeginCapture(as<cudaStream_t>(stream), cudaStreamCaptureModeThreadLocal),
          "beginning to capture a graph");
  }

  RawHandle end_capture(RawHandle stream) override {
    use();
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(as<cudaStream_t>(stream), &graph), "capturing a graph");
    cudaGraphExec_t executable = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
    forget_errors(cudaGraphDestroy(graph));
    check(status, "making a graph executable");
    return raw(executable);
  }

  void abort_capture(RawHandle stream) noexcept override {
    cudaGraph_t graph = nullptr;
    forget_errors(cudaStreamEndCapture(as<cudaStream_t>(stream), &graph));
    if (graph != nullptr) forget_errors(cudaGraphDestroy(graph));
  }

  void launch(RawHandle graph, RawHandle stream) override {
    use();
    check(cudaGraphLaunch(as<cudaGraphExec_t>(graph), as<cudaStream_t>(stream)),
          "launching a graph");
  }

  void destroy_graph(RawHandle graph) noexcept override {
    forget_errors(cudaGraphExecDestroy(as<cudaGraphExec_t>(graph)));
  }

  void prepare_step(const runtime::StepBuffers& buffers, RawHandle stream) override {
    use();
    cuda::prepare_step(buffers, as<cudaStream_t>(stream));
  }

  void finish_step(const runtime::StepBuffers& buffers, RawHandle stream) override {
    use();
    cuda::finish_step(buffers, as<cudaStream_t>(stream));
  }

  void scale(const float* source, std::size_t num_elements, double factor, void* out,
             runtime::DataType type, RawHandle stream) override {
    use();
    cuda::scale(source, num_elements, factor, out, type, as<cudaStream_t>(stream));
  }

  void to_pixels(const void* images, runtime::DataType type, std::size_t batch,
                 std::size_t num_pixels, std::uint8_t* out, std::int32_t* not_finite,
                 RawHandle stream) override {
    use();
    cuda::to_pixels(images, type, batch, num_pixels, out, not_finite, as<cudaStream_t>(stream));
  }

  void draw_philox(std::uint64_t seed, std::uint32_t number, float* out, std::size_t count,
                   RawHandle stream) override {
    use();
    cuda::draw_philox(seed, number, out, count, as<cudaStream_t>(stream));
  }

 protected:
  void* do_allocate(std::size_t size_bytes) override {
    use();
    void* block = nullptr;
    const cudaError_t status = cudaMalloc(&block, size_bytes);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw runtime::MemoryBudgetError("an allocation on the GPU", size_bytes,
                                       memory_info().free_bytes, 0);
    }
    check(status, "allocating memory on the GPU");
    return block;
  }

  void do_release(void* block) noexcept override { forget_errors(cudaFree(block)); }

 private:
  // The current GPU belongs to the calling thread, whichever that is.
  void use() const { use_gpu(index_); }

  const int index_;
  const std::string name_;
  UploadRing ring_;
};

}  // namespace

std::shared_ptr<runtime::Device> make_device(int index) {
  refuse_lost(index);
  const Availability found = available(index);
  if (!found.usable) throw DeviceError(found.reason);
  return std::make_shared<CudaDevice>(index);
}

}  // namespace sdengine::cuda
