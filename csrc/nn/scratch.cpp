#include "nn/scratch.h"

#include <algorithm>

namespace sdengine::nn {

WinogradSizes::WinogradSizes(const WinogradArguments& arguments) {
  const Map& out = arguments.epilogue.out;
  tiles_x = (out.width + arguments.tile - 1) / arguments.tile;
  tiles_y = (out.height + arguments.tile - 1) / arguments.tile;
  tiles = out.images * tiles_x * tiles_y;
  points = (arguments.tile + 2) * (arguments.tile + 2);
  words = words_for(arguments.kind, arguments.x.channels);
  row_bytes = round_up(std::size_t(words) * 4);
  shares_tiles = tiles <= kSharedTiles;
  block = shares_tiles ? tiles : std::min(tiles, kTileBlock);
  // One cache line more, so that the points of a tile do not fall into the same sets of a cache.
  plane_bytes = block * row_bytes + kCacheLine;
}

AttentionSizes::AttentionSizes(const AttentionArguments& arguments) {
  head_dim = arguments.q.channels / arguments.heads;
  key_blocks = (arguments.k.width + kKeys - 1) / kKeys;
  item_bytes = static_cast<int>(size_of(arguments.q.type));
  // A cache line more than the block, for the same reason as above.
  value_row_bytes = kKeys * item_bytes + kCacheLine;
  value_block_bytes = round_up(head_dim * value_row_bytes);
  const std::size_t head_words = (std::size_t(head_dim) * item_bytes + 3) / 4;
  query_bytes = head_words * kPanel * 4;
  // One key more, which an odd last one is paired with.
  weight_bytes = std::size_t(kKeys + 2) * item_bytes / 4 * kPanel * 4;
  score_bytes = std::size_t(kKeys + 2) * kPanel * 4;
  sum_bytes = std::size_t(head_dim) * kPanel * 4;
  int16_row_bytes = round_up(std::size_t(head_dim) * 2);
  int16_block_bytes =
      round_up(kKeys * int16_row_bytes + (std::size_t(kKeys) + head_dim + kPanel) * 4);
  int16_own_bytes = round_up(kQueries * int16_row_bytes + sum_bytes + kPanel * 4);
}

ScratchNeed scratch_for(const LinearArguments& arguments) {
  const std::size_t rows = arguments.x.rows();
  const std::size_t row_bytes = quantized_row_bytes(arguments.weight);
  const Kind kind = arguments.weight.kind;
  if (kind == Kind::Int8 || kind == Kind::Int16) return {round_up(rows * 4) + rows * row_bytes, 0};
  const bool padded = arguments.x.channels % values_per_word(arguments.weight.kind) != 0;
  return {padded ? rows * row_bytes : 0, 0};
}

ScratchNeed scratch_for(const ConvArguments& arguments) {
  const Panels& weight = arguments.weight;
  const std::size_t gathered = gathered_bytes(weight);
  if (weight.kind != Kind::Int16) return {0, gathered};
  // Rows as they are, then in 16 bits, then their scales.
  return {0, gathered + kGatheredRows * (quantized_row_bytes(weight) + sizeof(float))};
}

ScratchNeed scratch_for(const WinogradArguments& arguments) {
  const WinogradSizes sizes(arguments);
  const std::size_t transformed = sizes.points * sizes.plane_bytes;
  const std::size_t scales = round_up(std::size_t(sizes.points) * sizes.block * 4);
  const std::size_t one_tile =
      sizes.points * round_up((std::size_t(arguments.x.channels) + kPanel) * 4);
  const std::size_t sums = std::size_t(sizes.points) * (sizes.block * kPanel * 4 + kCacheLine);
  const std::size_t zeros = round_up((std::size_t(arguments.x.channels) + kPanel) * 4);
  const std::size_t own = one_tile + sums + zeros;
  if (sizes.shares_tiles) return {transformed + scales, own};
  return {0, own + transformed + scales};
}

ScratchNeed scratch_for(const GroupNormArguments& arguments) {
  return {norm_sums_bytes(arguments.x), 0};
}

std::size_t norm_sums_bytes(const Map& x) {
  const std::size_t chunks = (x.pixels() + kNormRows - 1) / kNormRows;
  const std::size_t row = round_up((std::size_t(x.channels) + kPanel) * 4);
  // Two sums a chunk, then scale and shift of each image.
  return x.images * (chunks * 2 + 2) * row;
}

ScratchNeed scratch_for(const AttentionArguments& arguments) {
  const AttentionSizes sizes(arguments);
  const std::size_t heads = std::size_t(arguments.q.images) * arguments.heads;
  return {heads * sizes.key_blocks * sizes.block_bytes(), sizes.query_bytes + sizes.weight_bytes +
                                                              sizes.score_bytes + sizes.sum_bytes +
                                                              sizes.int16_own_bytes};
}

}  // namespace sdengine::nn
