#include "state.h"

using namespace fake_cuda;

namespace {

using Lock = std::lock_guard<std::recursive_mutex>;

}  // namespace

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Lock lock(state().mutex);
  if (state().streams.count(stream) == 0) {
    return answer(violate(cudaErrorStreamCaptureUnsupported, "no living stream was captured"));
  }
  if (stream->is_capturing) {
    return answer(violate(cudaErrorIllegalState, "a capture was begun within another"));
  }
  stream->is_capturing = true;
  stream->capturing_thread = std::this_thread::get_id();
  return answer(cudaSuccess);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(state().mutex);
  *graph = nullptr;
  if (state().streams.count(stream) == 0 || !stream->is_capturing) {
    return answer(violate(cudaErrorIllegalState, "a capture was ended that was not begun"));
  }
  if (stream->capturing_thread != std::this_thread::get_id()) {
    violate(cudaSuccess, "a capture was ended by another thread");
  }
  std::vector<Operation> captured = std::move(stream->captured);
  stream->captured.clear();
  stream->is_capturing = false;
  if (stream->is_invalidated) {
    stream->is_invalidated = false;
    return answer(cudaErrorStreamCaptureInvalidated);
  }
  *graph = new FakeGraph{std::move(captured)};
  state().graphs.insert(*graph);
  return answer(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  const Lock lock(state().mutex);
  if (state().graphs.count(graph) == 0) {
    return answer(violate(cudaErrorInvalidValue, "a graph was used that does not live"));
  }
  *executable = new FakeGraphExec{graph->operations, 0};
  state().executables.insert(*executable);
  return answer(cudaSuccess);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Lock lock(state().mutex);
  if (state().graphs.erase(graph) == 0) {
    return answer(violate(cudaErrorInvalidValue, "a graph was destroyed that does not live"));
  }
  delete graph;
  return answer(cudaSuccess);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Lock lock(state().mutex);
  if (state().executables.count(executable) == 0) {
    return answer(violate(cudaErrorInvalidValue, "a graph was launched that does not live"));
  }
  if (state().streams.count(stream) > 0 && stream->is_capturing) {
    stream->is_invalidated = true;
    return answer(violate(cudaErrorStreamCaptureUnsupported, "a graph was launched in a capture"));
  }
  const cudaError_t status = enqueue(stream, [executable] {
    --executable->num_waiting_launches;
    for (const Operation& operation : executable->operations) {
      if (state().sticky == cudaSuccess) operation();
    }
  });
  if (status == cudaSuccess) {
    ++executable->num_waiting_launches;
    ++state().launches;
  }
  return answer(status);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Lock lock(state().mutex);
  if (state().executables.count(executable) == 0) {
    return answer(violate(cudaErrorInvalidValue, "a graph was destroyed that does not live"));
  }
  // After a sticky error nothing runs any more.
  if (executable->num_waiting_launches > 0 && state().sticky == cudaSuccess) {
    // CUDA would keep it until it has run; we promise not to rely on that.
    violate(cudaSuccess, "a graph was destroyed before its launch had run");
    run_everything();
  }
  state().executables.erase(executable);
  delete executable;
  return answer(cudaSuccess);
}
