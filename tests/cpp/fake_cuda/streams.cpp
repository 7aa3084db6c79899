#include "state.h"

using namespace fake_cuda;

namespace {

using Lock = std::lock_guard<std::recursive_mutex>;

bool lives(FakeStream* stream) { return state().streams.count(stream) > 0; }
bool lives(FakeEvent* event) { return state().events.count(event) > 0; }

cudaError_t unknown_stream() {
  return violate(cudaErrorInvalidResourceHandle, "a stream was used that does not live");
}

cudaError_t unknown_event() {
  return violate(cudaErrorInvalidResourceHandle, "an event was used that does not live");
}

bool is_done(const FakeEvent& event) {
  return event.queue == nullptr || event.queue->num_done >= event.place;
}

}  // namespace

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Lock lock(state().mutex);
  *stream = new FakeStream;
  state().streams.insert(*stream);
  return answer(cudaSuccess);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(state().mutex);
  if (!lives(stream)) return answer(unknown_stream());
  if (stream->is_capturing) violate(cudaSuccess, "a stream was destroyed while it captured");
  // As documented, what it holds still runs.
  run_all(*stream->queue);
  state().streams.erase(stream);
  delete stream;
  return answer(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(state().mutex);
  if (!lives(stream)) return answer(unknown_stream());
  if (stream->is_capturing) {
    stream->is_invalidated = true;
    return answer(
        violate(cudaErrorStreamCaptureUnsupported, "a stream was waited for in a capture"));
  }
  run_all(*stream->queue);
  return answer(cudaSuccess);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const Lock lock(state().mutex);
  *event = new FakeEvent;
  state().events.insert(*event);
  return answer(cudaSuccess);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Lock lock(state().mutex);
  if (!lives(event)) return answer(unknown_event());
  state().events.erase(event);
  delete event;
  return answer(cudaSuccess);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock(state().mutex);
  if (!lives(event)) return answer(unknown_event());
  if (!lives(stream)) return answer(unknown_stream());
  event->is_captured = stream->is_capturing;
  event->queue = stream->queue;
  event->place = stream->queue->num_queued;
  return answer(cudaSuccess);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock(state().mutex);
  if (!lives(event)) return answer(unknown_event());
  if (event->is_captured) {
    return answer(violate(cudaErrorCapturedEvent, "an event of a capture was asked for"));
  }
  const bool done = is_done(*event);
  // Time passes: what is asked for often enough ends.
  if (!done) run_one(*event->queue);
  return answer(done ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(state().mutex);
  if (!lives(event)) return answer(unknown_event());
  if (event->is_captured) {
    return answer(violate(cudaErrorCapturedEvent, "an event of a capture was waited for"));
  }
  while (!is_done(*event)) run_one(*event->queue);
  return answer(cudaSuccess);
}
