#pragma once

// Weights as products read them; nn/packing.h lays them out.

#include <cstddef>
#include <cstdint>

namespace sdengine::nn {

// What the four bytes of a word of a packed panel hold.
enum class Kind : std::uint8_t { Float32, BFloat16, Int16, Int8 };
constexpr int kPanel = 32;  // columns of the product
// Values along k that share a word.
constexpr int values_per_word(Kind kind) {
  return kind == Kind::Float32 ? 1 : kind == Kind::Int8 ? 4 : 2;
}
constexpr int words_for(Kind kind, int k) {
  return (k + values_per_word(kind) - 1) / values_per_word(kind);
}

// The matrix B [n, k] of a product A B^T as panels [n/32][words][32] of four bytes, zero beyond its
// edges: n are output features or channels, k what is added up.
struct Panels {
  const char* data = nullptr;
  Kind kind = Kind::Float32;
  int n = 0, k = 0;
  // Of integers: what a value of each column counts. Int8 only: the sum of its values.
  const float* column_scales = nullptr;
  const std::int32_t* column_sums = nullptr;

  int panels() const { return (n + kPanel - 1) / kPanel; }
  int words() const { return words_for(kind, k); }
  std::size_t panel_bytes() const { return std::size_t(words()) * kPanel * 4; }
};

}  // namespace sdengine::nn
