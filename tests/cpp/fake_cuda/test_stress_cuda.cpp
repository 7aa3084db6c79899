#include "cuda/device.h"
#include "network.h"
#include "stress.h"

namespace {

void serves_many_requests() {
  fake_cuda::reset();
  {
    const auto device = sdengine::cuda::make_device(0);
    stress::run(device, &fake_cuda_network<float>);
    // The arena, and one try a hundred requests for more than there is.
    CHECK(fake_cuda::counters().allocations == 1 + (stress::num_requests() + 99) / 100);
  }
  const fake_cuda::Counters left = fake_cuda::counters();
  CHECK(left.live_blocks == 0 && left.live_bytes == 0 && left.live_streams == 0);
  CHECK(left.live_events == 0 && left.live_graphs == 0);
  CHECK(left.launches > stress::num_requests());
  for (const std::string& violation : fake_cuda::violations()) throw check::Failure(violation);
}

}  // namespace

int main() { return check::run_all({{"serves_many_requests", serves_many_requests}}); }
