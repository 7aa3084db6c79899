#include "state.h"

using namespace fake_cuda;

namespace {

// Ends a capture on the streams that have joined it; whether all have joined back.
bool leave_capture(FakeStream* origin) {
  bool joined = true;
  for (FakeStream* stream : state().streams) {
    if (stream->origin != origin) continue;
    joined = joined && !stream->must_join;
    stream->origin = nullptr;
    stream->must_join = false;
  }
  return joined;
}

}  // namespace

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Lock lock(state().mutex);
  if (state().streams.count(stream) == 0) {
    return answer(violate(cudaErrorStreamCaptureUnsupported, "no living stream was captured"));
  }
  if (stream->is_capturing) {
    return answer(violate(cudaErrorIllegalState, "a capture was begun within another"));
  }
  stream->is_capturing = true;
  stream->mode = mode;
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
  const bool joined = leave_capture(stream);
  if (stream->is_invalidated) {
    stream->is_invalidated = false;
    return answer(cudaErrorStreamCaptureInvalidated);
  }
  if (!joined) {
    return answer(violate(cudaErrorStreamCaptureUnjoined, "a capture left a stream unjoined"));
  }
  *graph = new FakeGraph{std::move(captured), stream->queue->gpu};
  state().graphs.insert(*graph);
  return answer(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  const Lock lock(state().mutex);
  if (state().graphs.count(graph) == 0) {
    return answer(violate(cudaErrorInvalidValue, "a graph was used that does not live"));
  }
  *executable = new FakeGraphExec{graph->operations, graph->gpu, 0};
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
  FakeStream* const found = find_stream(stream);
  if (found != nullptr && found->capture() != nullptr) {
    found->capture()->is_invalidated = true;
    return answer(violate(cudaErrorStreamCaptureUnsupported, "a graph was launched in a capture"));
  }
  if (executable->gpu != current_gpu()) {
    return answer(violate(cudaErrorInvalidValue, "a graph was launched on another GPU"));
  }
  const cudaError_t status = enqueue(stream, [executable] {
    --executable->num_waiting_launches;
    const Device& gpu = state().gpus.at(static_cast<std::size_t>(executable->gpu));
    for (const Operation& operation : executable->operations) {
      if (gpu.sticky == cudaSuccess) operation();
    }
  });
  if (status == cudaSuccess) {
    ++executable->num_waiting_launches;
    ++state().ledger.graph_launches;
  }
  return answer(status);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Lock lock(state().mutex);
  if (state().executables.count(executable) == 0) {
    return answer(violate(cudaErrorInvalidValue, "a graph was destroyed that does not live"));
  }
  // After a sticky error nothing runs any more.
  const Device& gpu = state().gpus.at(static_cast<std::size_t>(executable->gpu));
  if (executable->num_waiting_launches > 0 && gpu.sticky == cudaSuccess) {
    // CUDA would keep it until it has run; we promise not to rely on that.
    violate(cudaSuccess, "a graph was destroyed before its launch had run");
    run_everything(executable->gpu);
  }
  state().executables.erase(executable);
  delete executable;
  return answer(cudaSuccess);
}
