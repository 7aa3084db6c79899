// The rules of the fake, each broken on purpose: a rule that never fires would prove nothing.

#include <cmath>
#include <cstring>

#include "check.h"
#include "fake_cuda.h"

namespace {

bool noted(const std::string& part) {
  for (const std::string& violation : fake_cuda::violations()) {
    if (violation.find(part) != std::string::npos) return true;
  }
  return false;
}

struct Gpu {
  cudaStream_t stream = nullptr;
  cudaGraphExec_t executable = nullptr;

  Gpu() {
    fake_cuda::reset(4096);
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  }
  ~Gpu() { fake_cuda::reset(); }

  void capture(const std::function<void()>& kernel) {
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    fake_cuda::launch_kernel(stream, kernel);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    CHECK(cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  }
};

void work_waits_for_a_wait() {
  Gpu gpu;
  int ran = 0;
  fake_cuda::launch_kernel(gpu.stream, [&] { ++ran; });
  CHECK(ran == 0);
  CHECK(cudaStreamSynchronize(gpu.stream) == cudaSuccess && ran == 1);
  CHECK(fake_cuda::violations().empty());
}

void captured_work_runs_at_each_launch() {
  Gpu gpu;
  int ran = 0;
  gpu.capture([&] { ++ran; });
  cudaStreamSynchronize(gpu.stream);
  CHECK(ran == 0);
  cudaGraphLaunch(gpu.executable, gpu.stream);
  cudaGraphLaunch(gpu.executable, gpu.stream);
  cudaStreamSynchronize(gpu.stream);
  CHECK(ran == 2 && fake_cuda::counters().launches == 2);
  CHECK(cudaGraphExecDestroy(gpu.executable) == cudaSuccess);
  CHECK(fake_cuda::counters().live_graphs == 0 && fake_cuda::violations().empty());
}

void memory_has_a_limit() {
  Gpu gpu;
  void *first = nullptr, *second = nullptr;
  CHECK(cudaMalloc(&first, 4000) == cudaSuccess);
  CHECK(cudaMalloc(&second, 97) == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess);
  CHECK(cudaFree(first) == cudaSuccess && cudaMalloc(&second, 97) == cudaSuccess);
  CHECK(fake_cuda::counters().live_bytes == 97 && fake_cuda::violations().empty());
}

void freeing_twice_is_noted() {
  Gpu gpu;
  void* block = nullptr;
  cudaMalloc(&block, 16);
  cudaFree(block);
  CHECK(cudaFree(block) == cudaErrorInvalidValue && noted("not allocated"));
}

void using_freed_memory_is_noted() {
  Gpu gpu;
  void* block = nullptr;
  float value = 1;
  cudaMalloc(&block, sizeof value);
  auto* const kept = static_cast<float*>(block);
  cudaMemcpy(block, &value, sizeof value, cudaMemcpyHostToDevice);
  cudaFree(block);
  CHECK(std::isnan(*kept));
  CHECK(cudaMemcpy(&value, block, sizeof value, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK(noted("beyond") && !noted("was written"));
  *kept = 2;
  CHECK(noted("freed memory was written"));
}

void reaching_beyond_a_block_is_noted() {
  Gpu gpu;
  void* block = nullptr;
  char bytes[17] = {};
  cudaMalloc(&block, 16);
  CHECK(cudaMemcpyAsync(block, bytes, 17, cudaMemcpyHostToDevice, gpu.stream) ==
        cudaErrorInvalidValue);
  CHECK(cudaMemsetAsync(block, 0, 17, gpu.stream) == cudaErrorInvalidValue);
  CHECK(fake_cuda::violations().size() == 2);
}

void captures_refuse_what_waits_or_allocates() {
  void* block = nullptr;
  const std::function<cudaError_t(Gpu&)> forbidden[] = {
      [&](Gpu&) { return cudaMalloc(&block, 16); },
      [&](Gpu&) { return cudaFree(block); },
      [](Gpu& gpu) { return cudaStreamSynchronize(gpu.stream); },
      [&](Gpu&) { return cudaMemcpy(block, block, 1, cudaMemcpyHostToDevice); },
      [](Gpu& gpu) { return cudaGraphLaunch(gpu.executable, gpu.stream); },
  };
  for (const auto& call : forbidden) {
    Gpu gpu;
    gpu.capture([] {});
    cudaMalloc(&block, 1);
    cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal);
    CHECK(call(gpu) == cudaErrorStreamCaptureUnsupported);
    CHECK(fake_cuda::violations().size() == 1);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(gpu.stream, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(graph == nullptr);
  }
}

void captures_begin_and_end_in_pairs() {
  Gpu gpu;
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(gpu.stream, &graph) == cudaErrorIllegalState);
  cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal);
  CHECK(cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal) ==
        cudaErrorIllegalState);
  CHECK(fake_cuda::violations().size() == 2);
}

void events_of_captures_cannot_be_asked_for() {
  Gpu gpu;
  cudaEvent_t event = nullptr;
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  CHECK(cudaEventQuery(event) == cudaSuccess);
  cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal);
  cudaEventRecord(event, gpu.stream);
  CHECK(cudaEventQuery(event) == cudaErrorCapturedEvent);
  CHECK(cudaEventSynchronize(event) == cudaErrorCapturedEvent);
  CHECK(fake_cuda::violations().size() == 2);
}

void events_end_when_their_work_has_run() {
  Gpu gpu;
  cudaEvent_t event = nullptr;
  int ran = 0;
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  for (int i = 0; i < 2; ++i) fake_cuda::launch_kernel(gpu.stream, [&] { ++ran; });
  cudaEventRecord(event, gpu.stream);
  fake_cuda::launch_kernel(gpu.stream, [&] { ++ran; });
  CHECK(cudaEventQuery(event) == cudaErrorNotReady && cudaGetLastError() == cudaSuccess);
  CHECK(cudaEventSynchronize(event) == cudaSuccess && ran == 2);
  CHECK(cudaEventQuery(event) == cudaSuccess && ran == 2);
}

void what_does_not_live_cannot_be_used() {
  Gpu gpu;
  cudaEvent_t event = nullptr;
  cudaStream_t other = nullptr;
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
  gpu.capture([] {});
  CHECK(cudaGraphExecDestroy(gpu.executable) == cudaSuccess);
  CHECK(cudaEventDestroy(event) == cudaSuccess && cudaStreamDestroy(other) == cudaSuccess);
  CHECK(fake_cuda::violations().empty());
  CHECK(cudaGraphLaunch(gpu.executable, gpu.stream) == cudaErrorInvalidValue);
  CHECK(cudaGraphExecDestroy(gpu.executable) == cudaErrorInvalidValue);
  CHECK(cudaEventRecord(event, gpu.stream) == cudaErrorInvalidResourceHandle);
  CHECK(cudaEventDestroy(event) == cudaErrorInvalidResourceHandle);
  CHECK(cudaStreamSynchronize(other) == cudaErrorInvalidResourceHandle);
  CHECK(cudaStreamDestroy(other) == cudaErrorInvalidResourceHandle);
  CHECK(fake_cuda::violations().size() == 6);
}

void destroying_a_running_graph_is_noted() {
  Gpu gpu;
  gpu.capture([] {});
  cudaGraphLaunch(gpu.executable, gpu.stream);
  cudaGraphExecDestroy(gpu.executable);
  CHECK(noted("before its launch had run"));
}

void faults_stick() {
  Gpu gpu;
  void* block = nullptr;
  fake_cuda::fault_next_kernel();
  fake_cuda::launch_kernel(gpu.stream, [] {});
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(cudaStreamSynchronize(gpu.stream) == cudaErrorIllegalAddress);
  CHECK(cudaMalloc(&block, 1) == cudaErrorIllegalAddress);
  CHECK(cudaGetLastError() == cudaErrorIllegalAddress);
  CHECK(cudaGetLastError() == cudaErrorIllegalAddress);
}

void leaks_are_counted() {
  Gpu gpu;
  void* block = nullptr;
  cudaMalloc(&block, 100);
  gpu.capture([] {});
  const fake_cuda::Counters left = fake_cuda::counters();
  CHECK(left.live_blocks == 1 && left.live_bytes == 100 && left.live_streams == 1);
  CHECK(left.live_graphs == 1 && left.live_events == 0);
}

}  // namespace

int main() {
  return check::run_all(
      {{"work_waits_for_a_wait", work_waits_for_a_wait},
       {"captured_work_runs_at_each_launch", captured_work_runs_at_each_launch},
       {"memory_has_a_limit", memory_has_a_limit},
       {"freeing_twice_is_noted", freeing_twice_is_noted},
       {"using_freed_memory_is_noted", using_freed_memory_is_noted},
       {"reaching_beyond_a_block_is_noted", reaching_beyond_a_block_is_noted},
       {"captures_refuse_what_waits_or_allocates", captures_refuse_what_waits_or_allocates},
       {"captures_begin_and_end_in_pairs", captures_begin_and_end_in_pairs},
       {"events_of_captures_cannot_be_asked_for", events_of_captures_cannot_be_asked_for},
       {"events_end_when_their_work_has_run", events_end_when_their_work_has_run},
       {"what_does_not_live_cannot_be_used", what_does_not_live_cannot_be_used},
       {"destroying_a_running_graph_is_noted", destroying_a_running_graph_is_noted},
       {"faults_stick", faults_stick},
       {"leaks_are_counted", leaks_are_counted}});
}
