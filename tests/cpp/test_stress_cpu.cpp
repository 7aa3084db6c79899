#include "cpu_network.h"
#include "stress.h"

namespace {

void serves_many_requests() {
  const auto device = std::make_shared<sdengine::cpu::CpuDevice>(std::size_t{16} << 20);
  stress::run(device, [&](const stress::StepBuffers& buffers, Evaluations* evaluations) {
    return cpu_network(device, buffers, evaluations);
  });
  CHECK(device->num_live_blocks() == 0);
}

}  // namespace

int main() { return check::run_all({{"serves_many_requests", serves_many_requests}}); }
