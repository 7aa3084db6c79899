#pragma once

#include <cstddef>
#include <cstdint>

#include "nn/panels.h"

namespace sdengine::nn {

struct Operations;

// What is added to a tensor of `rows` rows of k values: strength * (scale * (up down)), or
// strength * (scale * down) of a whole matrix. In fp32, each operation rounded: a product's terms
// are added in the order of its rank, none of them fused, so that a plain loop gives the same bits.
struct Term {
  const float* up = nullptr;    // [rows, rank]; null of a whole matrix
  const float* down = nullptr;  // [rank, k], or [rows, k]
  int rank = 0;
  float scale = 1, strength = 1;
};

enum class Stored : std::uint8_t { Float32, Float16, BFloat16 };

// A tensor [rows, k], whose rows stand below those of the one before.
struct Source {
  const void* data = nullptr;
  Stored stored = Stored::Float32;
  int rows = 0;
  const Term* terms = nullptr;
  int term_count = 0;
};

// One weight to be laid out as Panels or WinogradArguments describe it: the same bytes with every
// instruction set. Rows are output features or channels, k [channels, kernel, kernel].
struct Packing {
  Kind kind = Kind::Float32;
  int tile = 0;  // of Winograd, whose kernel is 3; 0 for panels
  int n = 0, channels = 0, kernel = 1;
  bool gated = false;  // rows are laid out as 16 of the first half, 16 of the second, and so on
  const Source* sources = nullptr;
  int source_count = 0;
  char* to = nullptr;
  float* scales = nullptr;       // of integers, [panels * 32], of Winograd for each point
  std::int32_t* sums = nullptr;  // of Int8, [panels * 32]

  int k() const { return channels * kernel * kernel; }
  int points() const { return tile > 0 ? (tile + 2) * (tile + 2) : 1; }
  int panels() const { return (n + kPanel - 1) / kPanel; }
  // Values along k of a packed row.
  int inner() const { return tile > 0 ? channels : k(); }
};

// Scratch of `pack_panel` in floats: rows in the order of the source, the same as they are packed.
inline std::size_t packing_scratch_floats(const Packing& packing) {
  const std::size_t rows = std::size_t(kPanel) * packing.k();
  const std::size_t words = std::size_t(words_for(packing.kind, packing.inner()));
  const std::size_t packed = packing.points() * kPanel * words;
  const std::size_t transformed = packing.tile > 0 ? packing.points() * packing.channels : rows;
  return rows + packed + transformed + 64;
}

std::size_t panels_bytes(Kind kind, int n, int k);
std::size_t winograd_bytes(Kind kind, int tile, int out_channels, int in_channels);

// Lays one weight out on the calling thread, all of its bytes written. Returns false where a sum
// with terms is not finite; the bytes are then of no use.
bool pack(const Packing& packing, const Operations& operations);

}  // namespace sdengine::nn
