#include "state.h"

using namespace fake_cuda;

namespace {

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

// Null where the event can be asked for or waited for, else the answer.
cudaError_t why_not(cudaEvent_t event) {
  if (!lives(event)) return unknown_event();
  if (event->captured_on != nullptr) {
    return violate(cudaErrorCapturedEvent, "an event of a capture was asked for or waited for");
  }
  if (invalidate_captures()) {
    return violate(cudaErrorStreamCaptureUnsupported,
                   "an event was asked for or waited for in a capture");
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const Lock lock(state().mutex);
  use_gpu();
  if (flags != cudaStreamNonBlocking) {
    return answer(violate(cudaErrorInvalidValue, "a stream was made that waits for the default"));
  }
  *stream = new FakeStream;
  (*stream)->queue->gpu = current_gpu();
  state().streams.insert(*stream);
  return answer(cudaSuccess);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  const Lock lock(state().mutex);
  FakeStream* const stream = handle == nullptr ? nullptr : find_stream(handle);
  if (stream == nullptr) return answer(unknown_stream());
  if (stream->capture() != nullptr) {
    violate(cudaSuccess, "a stream was destroyed while it captured");
  }
  // As documented, what it holds still runs.
  run_all(*stream->queue);
  state().streams.erase(stream);
  delete stream;
  return answer(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  const Lock lock(state().mutex);
  FakeStream* const stream = find_stream(handle);
  if (stream == nullptr) return answer(unknown_stream());
  ++state().ledger.waits;
  FakeStream* const origin = stream->capture();
  if (origin != nullptr) origin->is_invalidated = true;
  if (invalidate_captures() || origin != nullptr) {
    return answer(
        violate(cudaErrorStreamCaptureUnsupported, "a stream was waited for in a capture"));
  }
  run_all(*stream->queue);
  return answer(cudaSuccess);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  const Lock lock(state().mutex);
  FakeStream* const stream = find_stream(handle);
  if (stream == nullptr) return answer(unknown_stream());
  if (!lives(event)) return answer(unknown_event());
  if (event->captured_on == nullptr) {
    const std::shared_ptr<Queue> queue = event->queue;
    return answer(enqueue(handle, [queue, place = event->place] {
      while (queue != nullptr && queue->num_done < place) run_one(*queue);
    }));
  }
  FakeStream* const origin = event->captured_on->capture();
  if (origin == nullptr) {
    return answer(violate(cudaErrorCapturedEvent, "an event of a capture was waited for later"));
  }
  if (stream == origin) {
    event->captured_on->must_join = false;
  } else {
    stream->origin = origin;
    stream->must_join = true;
  }
  return answer(cudaSuccess);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const Lock lock(state().mutex);
  use_gpu();
  *event = new FakeEvent;
  (*event)->gpu = current_gpu();
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

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  const Lock lock(state().mutex);
  FakeStream* const stream = find_stream(handle);
  if (!lives(event)) return answer(unknown_event());
  if (stream == nullptr) return answer(unknown_stream());
  if (event->gpu != stream->queue->gpu || event->gpu != current_gpu()) {
    return answer(
        violate(cudaErrorInvalidResourceHandle, "an event was recorded on another GPU's stream"));
  }
  event->captured_on = stream->capture() != nullptr ? stream : nullptr;
  event->queue = stream->queue;
  event->place = stream->queue->num_queued;
  return answer(cudaSuccess);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock(state().mutex);
  const cudaError_t refused = why_not(event);
  if (refused != cudaSuccess) return answer(refused);
  const bool done = is_done(*event);
  // Time passes: what is asked for often enough ends.
  if (!done) run_one(*event->queue);
  return answer(done ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(state().mutex);
  ++state().ledger.waits;
  const cudaError_t refused = why_not(event);
  if (refused != cudaSuccess) return answer(refused);
  while (!is_done(*event)) run_one(*event->queue);
  return answer(cudaSuccess);
}
