#include "runtime/noise_feed.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace sdengine::runtime {

NoiseFeed::NoiseFeed(std::shared_ptr<Device> device, std::shared_ptr<const HostBlock> host,
                     float* slots, std::size_t num_elements)
    : device_(std::move(device)),
      host_(std::move(host)),
      slots_(slots),
      num_elements_(num_elements),
      uploaded_(make_event(device_)) {}

void NoiseFeed::start(std::size_t total, std::size_t provided) {
  total_ = total;
  provided_ = drawn_ = provided;
  last_batch_ = 0;
  saved_.clear();
}

void NoiseFeed::provide(const StepNoise& noise, RawHandle stream) {
  if (!noise.draw && !noise.queue) {
    throw std::invalid_argument("noise: is None; the program needs noise");
  }
  if (noise.draw && provided_ == drawn_) draw_more(noise, stream);
  if (noise.queue) noise.queue(slots_ + provided_ % kNoiseSlots * num_elements_, stream);
  ++provided_;
  drawn_ = std::max(drawn_, provided_);
}

void NoiseFeed::save() {
  saved_.clear();
  for (std::size_t i = provided_; i < drawn_; ++i) {
    saved_.insert(saved_.end(), host_slot(i), host_slot(i) + num_elements_);
  }
}

void NoiseFeed::resume(RawHandle stream) {
  for (std::size_t i = provided_; i < drawn_; ++i) {
    std::copy_n(saved_.data() + (i - provided_) * num_elements_, num_elements_, host_slot(i));
  }
  // Slots are a ring, which the saved ones may go around the end of.
  const std::size_t wrap = std::min(drawn_, (provided_ / kNoiseSlots + 1) * kNoiseSlots);
  upload(provided_, wrap, stream);
  upload(wrap, drawn_, stream);
  saved_.clear();
}

float* NoiseFeed::host_slot(std::size_t index) const {
  return reinterpret_cast<float*>(host_->data()) + index % kNoiseSlots * num_elements_;
}

void NoiseFeed::draw_more(const StepNoise& noise, RawHandle stream) {
  const std::size_t batch = std::min({std::max<std::size_t>(1, 2 * last_batch_), kMostAtOnce,
                                      total_ - drawn_, kNoiseSlots - drawn_ % kNoiseSlots});
  // The last copy may be under way still, though hardly ever: it comes before what is computed now.
  if (!device_->is_done(uploaded_.raw())) device_->wait_for(uploaded_.raw());
  for (std::size_t i = drawn_; i < drawn_ + batch; ++i) noise.draw(host_slot(i));
  upload(drawn_, drawn_ + batch, stream);
  drawn_ += batch;
  last_batch_ = batch;
}

void NoiseFeed::upload(std::size_t first, std::size_t end, RawHandle stream) {
  if (first == end) return;
  device_->upload_pinned(slots_ + first % kNoiseSlots * num_elements_, host_slot(first),
                         (end - first) * num_elements_ * sizeof(float), stream);
  device_->record(uploaded_.raw(), stream);
}

}  // namespace sdengine::runtime
