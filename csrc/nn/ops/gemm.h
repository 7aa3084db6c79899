#pragma once

#include "nn/ops/epilogue.h"

namespace sdengine::nn::SDENGINE_ISA {

// Rows of A: four-byte words, rows a_bytes apart; rows of integers have a scale each.
struct Rows {
  const char* data;
  std::ptrdiff_t bytes;
  const float* scales = nullptr;
};

// Computes output rows [first, first + count) and panels [panel, last_panel); rows points at the
// first of them.
void multiply_block(const Rows& rows, std::ptrdiff_t first, int count, const Panels& weight,
                    int panel, int last_panel, const Epilogue& epilogue);

}  // namespace sdengine::nn::SDENGINE_ISA
