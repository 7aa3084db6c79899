#pragma once

#include <cstddef>
#include <cstdint>

#include "nn/panels.h"

namespace sdengine::nn {

// Weights laid out as Panels and WinogradArguments describe them, the same for every instruction
// set. Sources are fp32.

std::size_t panels_bytes(Kind kind, int n, int k);

// matrix: [n, k]. to: panels_bytes. Integers also write scales and Int8 sums, [panels * 32] each.
void pack_panels(Kind kind, const float* matrix, int n, int k, char* to, float* scales,
                 std::int32_t* sums);

std::size_t winograd_bytes(Kind kind, int tile, int out_channels, int in_channels);

// kernels: [out_channels, in_channels, 3, 3]. Int16 also writes scales, [panels, (tile+2)^2, 32].
void pack_winograd(Kind kind, int tile, const float* kernels, int out_channels, int in_channels,
                   char* to, float* scales);

}  // namespace sdengine::nn
