#pragma once

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>

#include "runtime/handles.h"

namespace sdengine::runtime {

// What a captured graph depends on. Seeds, prompts, samplers and guidance scales are not here:
// graphs read them from device memory.
struct GraphKey {
  std::string networks;
  std::size_t batch;
  std::size_t height;
  std::size_t width;
  std::string controls;

  bool operator<(const GraphKey& other) const {
    return std::tie(networks, batch, height, width, controls) <
           std::tie(other.networks, other.batch, other.height, other.width, other.controls);
  }
};

// Keeps the graphs that were used last.
class GraphCache {
 public:
  using Record = std::function<void(RawHandle stream)>;

  // Throws std::invalid_argument for max_graphs 0.
  GraphCache(std::shared_ptr<Device> device, std::size_t max_graphs);
  // Waits for the graphs that are running.
  ~GraphCache();
  GraphCache(const GraphCache&) = delete;
  GraphCache& operator=(const GraphCache&) = delete;

  // Captures the graph of `key` unless it is there; `record` queues its work on the given stream.
  // What record throws comes out, and nothing is kept.
  void warm_up(const GraphKey& key, const Record& record);

  // Queues the graph of `key` on the stream, capturing it first where it is missing. Returns why
  // that failed on the device, with nothing queued, and else nothing; what record throws besides
  // comes out, and so does the loss of the device.
  std::string launch(const GraphKey& key, RawHandle stream, const Record& record);

  // Drops the graph of `key` if it is there, before what it was captured from goes.
  void drop(const GraphKey& key);

 private:
  struct Entry {
    GraphKey key;
    Graph graph;
    Event last_launch;
  };
  using Entries = std::list<std::shared_ptr<Entry>>;

  std::shared_ptr<Entry> find_or_capture(const GraphKey& key, const Record& record);
  void retire(Entries::iterator position);
  void destroy_ended();

  std::shared_ptr<Device> device_;
  const std::size_t max_graphs_;
  Stream capture_stream_;
  std::mutex mutex_;  // guards all below
  Entries entries_;   // the last used first
  std::map<GraphKey, Entries::iterator> positions_;
  Entries retired_;
};

}  // namespace sdengine::runtime
