#include <atomic>
#include <thread>

#include "check.h"
#include "cpu/device.h"
#include "runtime/graph_cache.h"

namespace {

using namespace sdengine::runtime;
using sdengine::cpu::CpuDevice;

GraphKey size_key(std::size_t size) { return {"unet", 1, size, size, ""}; }

struct Fixture {
  std::shared_ptr<CpuDevice> device = std::make_shared<CpuDevice>();
  Stream stream = make_stream(device);
  std::shared_ptr<int> owned_by_graphs = std::make_shared<int>();
  int recorded = 0;
  int ran = 0;

  GraphCache::Record record() {
    return [this](RawHandle target) {
      ++recorded;
      device->enqueue([this, owned = owned_by_graphs] { ++ran; }, target);
    };
  }

  // How many there are, in the cache or on their way out.
  long graphs() const { return owned_by_graphs.use_count() - 1; }
};

void captures_once_and_replays() {
  Fixture f;
  GraphCache cache(f.device, 2);
  cache.warm_up(size_key(512), f.record());
  CHECK(f.recorded == 1 && f.ran == 0);
  for (int i = 0; i < 3; ++i) cache.launch(size_key(512), f.stream.raw(), f.record());
  CHECK(f.recorded == 1 && f.ran == 3);
}

void tells_every_part_of_a_key_apart() {
  Fixture f;
  GraphCache cache(f.device, 8);
  const GraphKey key{"unet", 1, 512, 768, ""};
  std::vector<GraphKey> keys(6, key);
  keys[1].networks = "other";
  keys[2].batch = 2;
  keys[3].height = 768;
  keys[4].width = 512;
  keys[5].controls = "canny";
  for (const GraphKey& each : keys) cache.launch(each, f.stream.raw(), f.record());
  CHECK(f.recorded == 6 && f.graphs() == 6);
}

void evicts_the_least_recently_used() {
  Fixture f;
  GraphCache cache(f.device, 2);
  for (const std::size_t size : {512, 768, 512, 1024}) {
    cache.launch(size_key(size), f.stream.raw(), f.record());
  }
  CHECK(f.graphs() == 2);
  f.recorded = 0;
  cache.launch(size_key(512), f.stream.raw(), f.record());
  CHECK(f.recorded == 0);
  cache.launch(size_key(768), f.stream.raw(), f.record());
  CHECK(f.recorded == 1);
  CHECK(f.graphs() == 2);
}

void drops_one_graph() {
  Fixture f;
  GraphCache cache(f.device, 2);
  for (const std::size_t size : {512, 768}) cache.warm_up(size_key(size), f.record());
  cache.drop(size_key(1024));
  CHECK(f.graphs() == 2);
  cache.drop(size_key(512));
  CHECK(f.graphs() == 1);
}

void keeps_nothing_of_a_failed_capture() {
  Fixture f;
  GraphCache cache(f.device, 2);
  const auto failing = [&](RawHandle stream) {
    f.record()(stream);
    throw sdengine::DeviceError("no");
  };
  CHECK_THROWS(sdengine::DeviceError, cache.warm_up(size_key(512), failing));
  CHECK(f.graphs() == 0 && f.ran == 0);
  cache.launch(size_key(512), f.stream.raw(), f.record());
  CHECK(f.ran == 1);
}

void refuses_in_a_capture_what_a_gpu_refuses() {
  Fixture f;
  GraphCache cache(f.device, 1);
  const auto allocating = [&](RawHandle) { const Block block(f.device, 16); };
  const auto waiting = [&](RawHandle stream) { f.device->synchronize(stream); };
  const auto nesting = [&](RawHandle stream) { f.device->begin_capture(stream); };
  CHECK_THROWS(sdengine::DeviceError, cache.warm_up(size_key(1), allocating));
  CHECK_THROWS(sdengine::DeviceError, cache.warm_up(size_key(1), waiting));
  CHECK_THROWS(sdengine::DeviceError, cache.warm_up(size_key(1), nesting));
  CHECK_THROWS(sdengine::DeviceError, f.device->end_capture(f.stream.raw()));
  CHECK_THROWS(std::invalid_argument, GraphCache(f.device, 0));
  CHECK(f.device->num_live_blocks() == 0);
}

void keeps_an_evicted_graph_while_it_runs() {
  Fixture f;
  GraphCache cache(f.device, 1);
  std::atomic<bool> started{false}, go_on{false}, ended{false};
  std::weak_ptr<int> graph;
  const auto slow = [&](RawHandle stream) {
    const auto owned = std::make_shared<int>();
    graph = owned;
    f.device->enqueue(
        [&, owned] {
          started = true;
          while (!go_on) std::this_thread::yield();
          ended = true;
        },
        stream);
  };
  std::thread runner([&] {
    const Stream stream = make_stream(f.device);
    cache.launch(size_key(512), stream.raw(), slow);
  });
  while (!started) std::this_thread::yield();
  cache.launch(size_key(768), f.stream.raw(), f.record());
  const bool kept = !graph.expired();
  go_on = true;
  runner.join();
  CHECK(kept && ended);
  cache.launch(size_key(1024), f.stream.raw(), f.record());
  CHECK(graph.expired());
}

}  // namespace

int main() {
  return check::run_all(
      {{"captures_once_and_replays", captures_once_and_replays},
       {"tells_every_part_of_a_key_apart", tells_every_part_of_a_key_apart},
       {"evicts_the_least_recently_used", evicts_the_least_recently_used},
       {"drops_one_graph", drops_one_graph},
       {"keeps_nothing_of_a_failed_capture", keeps_nothing_of_a_failed_capture},
       {"refuses_in_a_capture_what_a_gpu_refuses", refuses_in_a_capture_what_a_gpu_refuses},
       {"keeps_an_evicted_graph_while_it_runs", keeps_an_evicted_graph_while_it_runs}});
}
