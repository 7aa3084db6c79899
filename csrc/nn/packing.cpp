#include "nn/packing.h"

#include <vector>

#include "nn/operation_table.h"

namespace sdengine::nn {

std::size_t panels_bytes(Kind kind, int n, int k) {
  return std::size_t((n + kPanel - 1) / kPanel) * words_for(kind, k) * kPanel * 4;
}

std::size_t winograd_bytes(Kind kind, int tile, int out_channels, int in_channels) {
  return panels_bytes(kind, out_channels, in_channels) * (tile + 2) * (tile + 2);
}

bool pack(const Packing& packing, const Operations& operations) {
  std::vector<float> scratch(packing_scratch_floats(packing));
  bool finite = true;
  for (int panel = 0; panel < packing.panels(); ++panel) {
    finite &= operations.pack_panel(packing, panel, scratch.data());
  }
  return finite;
}

}  // namespace sdengine::nn
