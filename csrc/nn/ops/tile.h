#pragma once

#include <cstddef>

#include "nn/panels.h"
#include "nn/simd/simd.h"

namespace sdengine::nn::SDENGINE_ISA {

// Multiplies rows of a matrix by one packed panel: sums[r][32] (+)= a[r] . panel.
//
// a: `words` times four bytes a row, rows a_bytes apart. panel: [words][32] of four bytes.
// sums: [rows][32] of float, or of int32 for the integer kinds.
// next: memory that will be read soon, a cache line for each word; null for none.
void multiply(Kind kind, int rows, const char* a, std::ptrdiff_t a_bytes, const char* panel,
              int words, void* sums, bool accumulate, const char* next);

}  // namespace sdengine::nn::SDENGINE_ISA
