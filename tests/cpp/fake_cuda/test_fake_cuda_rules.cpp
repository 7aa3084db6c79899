// More rules of the fake, each broken on purpose: copies, the default stream, GPUs, captures.

#include <cstring>
#include <thread>

#include "check.h"
#include "fake_cuda.h"

namespace {

constexpr std::size_t kBytes = 64;

bool noted(const std::string& part) {
  for (const std::string& violation : fake_cuda::violations()) {
    if (violation.find(part) != std::string::npos) return true;
  }
  return false;
}

cudaStream_t make_stream() {
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  return stream;
}

cudaEvent_t make_event() {
  cudaEvent_t event = nullptr;
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  return event;
}

struct Gpu {
  cudaStream_t stream = nullptr;
  void *block = nullptr, *pinned = nullptr;

  explicit Gpu(const std::vector<fake_cuda::Gpu>& gpus = {fake_cuda::Gpu{}}) {
    fake_cuda::reset(gpus);
    stream = make_stream();
    cudaMalloc(&block, kBytes);
    cudaHostAlloc(&pinned, kBytes, cudaHostAllocPortable);
  }
  ~Gpu() { fake_cuda::reset(); }

  cudaGraphExec_t end_capture() const {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    CHECK(cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess);
    return executable;
  }
};

unsigned char first_byte(const void* block) { return *static_cast<const unsigned char*>(block); }

// 1. Copies.

void copies_of_pinned_memory_read_it_when_they_run() {
  Gpu gpu;
  std::memset(gpu.pinned, 1, kBytes);
  cudaMemcpyAsync(gpu.block, gpu.pinned, kBytes, cudaMemcpyHostToDevice, gpu.stream);
  std::memset(gpu.pinned, 2, kBytes);  // too early: the copy has not run
  cudaStreamSynchronize(gpu.stream);
  CHECK(first_byte(gpu.block) == 2);
  CHECK(fake_cuda::ledger().pageable_copies == 0 && fake_cuda::ledger().uploads == 1);
}

void pageable_copies_wait_for_their_stream_and_are_counted() {
  Gpu gpu;
  int ran = 0;
  const std::vector<unsigned char> host(kBytes, 3);
  std::vector<unsigned char> back(kBytes);
  fake_cuda::launch_kernel(gpu.stream, [&] { ++ran; });
  cudaMemcpyAsync(gpu.block, host.data(), kBytes, cudaMemcpyHostToDevice, gpu.stream);
  CHECK(ran == 1 && first_byte(gpu.block) == 3);
  fake_cuda::launch_kernel(gpu.stream, [&] { ++ran; });
  cudaMemcpyAsync(back.data(), gpu.block, kBytes, cudaMemcpyDeviceToHost, gpu.stream);
  CHECK(ran == 2 && back == host);
  const fake_cuda::Ledger ledger = fake_cuda::ledger();
  CHECK(ledger.pageable_copies == 2 && ledger.uploaded_bytes == kBytes);
  CHECK(ledger.downloaded_bytes == kBytes && fake_cuda::violations().empty());
}

void captured_copies_keep_the_pointer() {
  Gpu gpu;
  std::vector<unsigned char> host(kBytes, 1);
  cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal);
  cudaMemcpyAsync(gpu.block, host.data(), kBytes, cudaMemcpyHostToDevice, gpu.stream);
  const cudaGraphExec_t graph = gpu.end_capture();
  for (const unsigned char value : {4, 5}) {
    host.assign(kBytes, value);
    cudaGraphLaunch(graph, gpu.stream);
    cudaStreamSynchronize(gpu.stream);
    CHECK(first_byte(gpu.block) == value);
  }
}

// 2. The default stream.

void the_default_stream_does_not_drain_the_others() {
  Gpu gpu;
  int ran = 0;
  const std::vector<unsigned char> host(kBytes, 3);
  fake_cuda::launch_kernel(gpu.stream, [&] { ++ran; });
  cudaMemcpy(gpu.block, host.data(), kBytes, cudaMemcpyHostToDevice);
  CHECK(ran == 0 && noted("the default stream was used while another had work"));
}

void a_plain_copy_may_return_before_it_has_arrived() {
  Gpu gpu;
  const std::vector<unsigned char> host(kBytes, 3);
  cudaMemcpy(gpu.block, host.data(), kBytes, cudaMemcpyHostToDevice);
  CHECK(first_byte(gpu.block) == 0xff);
  fake_cuda::launch_kernel(gpu.stream, [] {});
  CHECK(noted("a stream was used while the default stream had work"));
  cudaStreamSynchronize(nullptr);
  CHECK(first_byte(gpu.block) == 3);
}

// 3. GPUs.

void handles_belong_to_a_gpu() {
  Gpu gpu({fake_cuda::Gpu{}, fake_cuda::Gpu{}});
  const cudaEvent_t event = make_event();
  cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal);
  const cudaGraphExec_t graph = gpu.end_capture();
  CHECK(cudaSetDevice(1) == cudaSuccess);
  const cudaStream_t other = make_stream();
  CHECK(cudaEventRecord(event, other) == cudaErrorInvalidResourceHandle);
  CHECK(cudaGraphLaunch(graph, other) == cudaErrorInvalidValue);
  CHECK(cudaMemsetAsync(gpu.block, 0, 1, gpu.stream) == cudaErrorInvalidResourceHandle);
  fake_cuda::launch_kernel(gpu.stream, [] {});
  CHECK(cudaGetLastError() == cudaErrorInvalidResourceHandle);
  CHECK(fake_cuda::violations().size() == 4);
  CHECK(cudaSetDevice(2) == cudaErrorInvalidDevice);
}

void each_thread_has_its_own_current_gpu() {
  Gpu gpu({fake_cuda::Gpu{}, fake_cuda::Gpu{}});
  int found = -1;
  cudaSetDevice(1);
  std::thread([&] { cudaGetDevice(&found); }).join();
  CHECK(found == 0 && fake_cuda::counters().contexts == 2);
}

// 4. Kernels' code.

void a_gpu_that_nothing_was_compiled_for_refuses_launches() {
  Gpu gpu({fake_cuda::Gpu{70}});
  int ran = 0;
  fake_cuda::launch_kernel(gpu.stream, [&] { ++ran; });
  CHECK(cudaGetLastError() == cudaErrorNoKernelImageForDevice);
  cudaStreamSynchronize(gpu.stream);
  cudaFuncAttributes attributes;
  CHECK(cudaFuncGetAttributes(&attributes, &ran) == cudaErrorNoKernelImageForDevice && ran == 0);
}

// 5. Modes of capture.

void unsafe_calls_break_global_captures_of_any_thread() {
  using Call = std::function<cudaError_t(Gpu&, cudaEvent_t)>;
  const Call unsafe[] = {
      [](Gpu&, cudaEvent_t event) { return cudaEventQuery(event); },
      [](Gpu&, cudaEvent_t event) { return cudaEventSynchronize(event); },
      [](Gpu& gpu, cudaEvent_t) { return cudaMalloc(&gpu.block, 1); },
      [](Gpu& gpu, cudaEvent_t) { return cudaFree(gpu.block); },
      [](Gpu& gpu, cudaEvent_t) { return cudaHostAlloc(&gpu.pinned, 1, 0); },
      [](Gpu& gpu, cudaEvent_t) { return cudaFreeHost(gpu.pinned); },
      [](Gpu& gpu, cudaEvent_t) {
        return cudaMemcpy(gpu.block, gpu.pinned, 1, cudaMemcpyHostToDevice);
      },
      [](Gpu&, cudaEvent_t) { return cudaStreamSynchronize(nullptr); },
  };
  for (const Call& call : unsafe) {
    for (const bool is_own : {false, true}) {
      for (const auto mode : {cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal}) {
        Gpu gpu;
        const cudaEvent_t event = make_event();
        cudaStreamBeginCapture(gpu.stream, mode);
        cudaError_t answered = cudaSuccess;
        const auto make_call = [&] { answered = call(gpu, event); };
        if (is_own) {
          make_call();
        } else {
          std::thread(make_call).join();
        }
        const bool breaks = is_own || mode == cudaStreamCaptureModeGlobal;
        CHECK(answered == (breaks ? cudaErrorStreamCaptureUnsupported : cudaSuccess));
        CHECK(fake_cuda::violations().size() == (breaks ? 1 : 0));
        cudaGraph_t graph = nullptr;
        CHECK(cudaStreamEndCapture(gpu.stream, &graph) ==
              (breaks ? cudaErrorStreamCaptureInvalidated : cudaSuccess));
      }
    }
  }
}

// 6. First launches.

void a_first_launch_in_a_capture_is_noted() {
  Gpu gpu;
  const char code[3] = {};
  cudaFuncAttributes attributes;
  CHECK(cudaFuncGetAttributes(&attributes, &code[0]) == cudaSuccess);
  fake_cuda::launch_kernel(gpu.stream, [] {}, &code[1]);
  cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal);
  fake_cuda::launch_kernel(gpu.stream, [] {}, &code[0]);
  fake_cuda::launch_kernel(gpu.stream, [] {}, &code[1]);
  CHECK(fake_cuda::violations().empty());
  fake_cuda::launch_kernel(gpu.stream, [] {}, &code[2]);
  CHECK(noted("for the first time in a capture"));
}

// 7. Freeing.

void freeing_while_work_is_queued_is_noted() {
  for (const bool is_pinned : {false, true}) {
    Gpu gpu;
    fake_cuda::launch_kernel(gpu.stream, [] {});
    CHECK((is_pinned ? cudaFreeHost(gpu.pinned) : cudaFree(gpu.block)) == cudaSuccess);
    CHECK(noted("memory was freed while work was queued"));
  }
}

// 8. Streams beside the captured one, as an engine's auxiliary ones.

void streams_that_join_a_capture_are_part_of_it() {
  Gpu gpu;
  const cudaStream_t beside = make_stream();
  const cudaEvent_t fork = make_event(), join = make_event();
  std::string ran;
  cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal);
  cudaEventRecord(fork, gpu.stream);
  CHECK(cudaStreamWaitEvent(beside, fork) == cudaSuccess);
  fake_cuda::launch_kernel(beside, [&] { ran += "a"; });
  cudaEventRecord(join, beside);
  CHECK(cudaStreamWaitEvent(gpu.stream, join) == cudaSuccess);
  fake_cuda::launch_kernel(gpu.stream, [&] { ran += "b"; });
  const cudaGraphExec_t graph = gpu.end_capture();
  CHECK(ran.empty());
  cudaGraphLaunch(graph, gpu.stream);
  fake_cuda::launch_kernel(beside, [&] { ran += "c"; });  // a plain stream again
  cudaStreamSynchronize(gpu.stream);
  CHECK(ran == "ab");
  cudaStreamSynchronize(beside);
  CHECK(ran == "abc" && fake_cuda::violations().empty());
}

void a_stream_that_does_not_join_back_is_noted() {
  Gpu gpu;
  const cudaStream_t beside = make_stream();
  const cudaEvent_t fork = make_event();
  cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal);
  cudaEventRecord(fork, gpu.stream);
  cudaStreamWaitEvent(beside, fork);
  fake_cuda::launch_kernel(beside, [] {});
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(gpu.stream, &graph) == cudaErrorStreamCaptureUnjoined);
  CHECK(noted("unjoined"));
}

// 9. The ledger.

void everything_that_runs_is_counted() {
  Gpu gpu;
  const fake_cuda::Ledger before = fake_cuda::ledger();
  cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal);
  fake_cuda::launch_kernel(gpu.stream, [] {});
  cudaMemsetAsync(gpu.block, 0, kBytes, gpu.stream);
  const cudaGraphExec_t graph = gpu.end_capture();
  CHECK(fake_cuda::ledger() == before);
  for (int launch = 0; launch < 3; ++launch) cudaGraphLaunch(graph, gpu.stream);
  cudaMemcpyAsync(gpu.pinned, gpu.block, 5, cudaMemcpyDeviceToHost, gpu.stream);
  const cudaEvent_t event = make_event();
  cudaEventRecord(event, gpu.stream);
  cudaEventSynchronize(event);
  cudaStreamSynchronize(gpu.stream);
  const fake_cuda::Ledger found = fake_cuda::ledger() - before;
  CHECK(found.text() ==
        "uploads 0, uploaded_bytes 0, downloads 1, downloaded_bytes 5, pageable_copies 0, fills 3, "
        "kernels 3, graph_launches 3, waits 2");
}

}  // namespace

int main() {
  return check::run_all(
      {{"copies_of_pinned_memory_read_it_when_they_run",
        copies_of_pinned_memory_read_it_when_they_run},
       {"pageable_copies_wait_for_their_stream_and_are_counted",
        pageable_copies_wait_for_their_stream_and_are_counted},
       {"captured_copies_keep_the_pointer", captured_copies_keep_the_pointer},
       {"the_default_stream_does_not_drain_the_others",
        the_default_stream_does_not_drain_the_others},
       {"a_plain_copy_may_return_before_it_has_arrived",
        a_plain_copy_may_return_before_it_has_arrived},
       {"handles_belong_to_a_gpu", handles_belong_to_a_gpu},
       {"each_thread_has_its_own_current_gpu", each_thread_has_its_own_current_gpu},
       {"a_gpu_that_nothing_was_compiled_for_refuses_launches",
        a_gpu_that_nothing_was_compiled_for_refuses_launches},
       {"unsafe_calls_break_global_captures_of_any_thread",
        unsafe_calls_break_global_captures_of_any_thread},
       {"a_first_launch_in_a_capture_is_noted", a_first_launch_in_a_capture_is_noted},
       {"freeing_while_work_is_queued_is_noted", freeing_while_work_is_queued_is_noted},
       {"streams_that_join_a_capture_are_part_of_it", streams_that_join_a_capture_are_part_of_it},
       {"a_stream_that_does_not_join_back_is_noted", a_stream_that_does_not_join_back_is_noted},
       {"everything_that_runs_is_counted", everything_that_runs_is_counted}});
}
