#pragma once

// Memory that operations use while they run, and the sizes of blocks that they and its planning
// agree on.

#include <cstddef>

#include "nn/arguments.h"

namespace sdengine::nn {

struct Scratch {
  char* shared = nullptr;
  char* own = nullptr;  // of the first thread
  std::size_t own_bytes = 0;
  char* of(int thread) const { return own + thread * own_bytes; }
};

// Bytes of scratch, for all threads together and for each.
struct ScratchNeed {
  std::size_t shared = 0, own = 0;
};
template <typename Arguments>
ScratchNeed scratch_for(const Arguments&) {
  return {};
}
ScratchNeed scratch_for(const LinearArguments& arguments);
ScratchNeed scratch_for(const ConvArguments& arguments);
ScratchNeed scratch_for(const WinogradArguments& arguments);
ScratchNeed scratch_for(const GroupNormArguments& arguments);
ScratchNeed scratch_for(const AttentionArguments& arguments);
std::size_t norm_sums_bytes(const Map& x);

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t round_up(std::size_t bytes) {
  return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
}

// Of a row of A that is copied first: whole vectors are written where it is rounded to 16 bits.
inline std::size_t quantized_row_bytes(const Panels& weight) {
  const std::size_t bytes = std::size_t(weight.words()) * 4;
  return weight.kind == Kind::Int16 ? round_up(bytes) : bytes;
}

constexpr int kGatheredRows = 48;
inline std::size_t gathered_bytes(const Panels& weight) {
  return round_up(kGatheredRows * (std::size_t(weight.k) * 4 + 4));
}

// Winograd: tiles that are transformed and multiplied together. Their sums, for one panel, stay in
// the second-level cache.
constexpr int kTileBlock = 96;
// Up to so many tiles are transformed once for all threads, which then share the panels: there the
// weights are larger than the map.
constexpr int kSharedTiles = 160;

struct WinogradSizes {
  int tiles_x, tiles_y, tiles, points, words;
  std::size_t row_bytes;    // of one transformed tile at one point
  std::size_t plane_bytes;  // of all tiles of a block at one point
  int block;
  bool shares_tiles;

  explicit WinogradSizes(const WinogradArguments& arguments);
};

// Attention: queries that a thread works on at a time, and keys in a block of weights.
constexpr int kQueries = kPanel;
constexpr int kKeys = 128;

struct AttentionSizes {
  int head_dim, key_blocks, item_bytes;
  std::size_t value_row_bytes;    // of one channel's values over a block of keys
  std::size_t value_block_bytes;  // of all channels
  std::size_t query_bytes, weight_bytes, score_bytes, sum_bytes;
  // In 16-bit integers: rows of keys or queries, a block of keys with the scales of its rows
  // and of its values' channels, and what a thread needs beside the above.
  std::size_t int16_row_bytes, int16_block_bytes, int16_own_bytes;

  // Of a block of values, a block of keys and the length of its longest, for one head.
  std::size_t block_bytes() const { return value_block_bytes + int16_block_bytes + kCacheLine; }

  explicit AttentionSizes(const AttentionArguments& arguments);
};

// GroupNorm: rows whose sums are taken together, whatever the number of threads.
constexpr int kNormRows = 128;

}  // namespace sdengine::nn
