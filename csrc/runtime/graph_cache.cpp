#include "runtime/graph_cache.h"

#include <iterator>
#include <stdexcept>
#include <utility>

namespace sdengine::runtime {

GraphCache::GraphCache(std::shared_ptr<Device> device, std::size_t max_graphs)
    : device_(std::move(device)), max_graphs_(max_graphs), capture_stream_(make_stream(device_)) {
  if (max_graphs == 0) {
    throw std::invalid_argument("max_graphs: 0 is not accepted; expected 1 or more");
  }
}

GraphCache::~GraphCache() {
  for (const Entries* entries : {&entries_, &retired_}) {
    for (const std::shared_ptr<Entry>& entry : *entries) {
      try {
        device_->wait_for(entry->last_launch.raw());
      } catch (const DeviceError&) {
        // A device that failed runs nothing any more.
      }
    }
  }
}

void GraphCache::warm_up(const GraphKey& key, const Record& record) {
  const std::lock_guard<std::mutex> lock(mutex_);
  find_or_capture(key, record);
}

std::string GraphCache::launch(const GraphKey& key, RawHandle stream, const Record& record) {
  std::shared_ptr<Entry> entry;
  try {
    const std::lock_guard<std::mutex> lock(mutex_);
    entry = find_or_capture(key, record);
  } catch (const DeviceLostError&) {
    throw;
  } catch (const DeviceError& error) {
    return error.what();
  }
  // Outside the lock: on a CPU device this is the whole computation. Holding the entry keeps the
  // graph alive meanwhile, evicted or not.
  device_->launch(entry->graph.raw(), stream);
  device_->record(entry->last_launch.raw(), stream);
  return {};
}

void GraphCache::drop(const GraphKey& key) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = positions_.find(key);
  if (found != positions_.end()) retire(found->second);
  destroy_ended();
}

std::shared_ptr<GraphCache::Entry> GraphCache::find_or_capture(const GraphKey& key,
                                                               const Record& record) {
  const auto found = positions_.find(key);
  if (found != positions_.end()) {
    entries_.splice(entries_.begin(), entries_, found->second);
    return entries_.front();
  }
  const RawHandle stream = capture_stream_.raw();
  Graph graph = capture(device_, stream, [&] { record(stream); });
  auto entry = std::make_shared<Entry>(Entry{key, std::move(graph), make_event(device_)});
  if (entries_.size() == max_graphs_) retire(std::prev(entries_.end()));
  entries_.push_front(entry);
  positions_[key] = entries_.begin();
  destroy_ended();
  return entry;
}

void GraphCache::retire(Entries::iterator position) {
  positions_.erase((*position)->key);
  retired_.splice(retired_.end(), entries_, position);
}

void GraphCache::destroy_ended() {
  // One owner: no thread is between finding the graph and recording its launch.
  retired_.remove_if([this](const std::shared_ptr<Entry>& entry) {
    return entry.use_count() == 1 && device_->is_done(entry->last_launch.raw());
  });
}

}  // namespace sdengine::runtime
