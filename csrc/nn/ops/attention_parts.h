#pragma once

// What attention by blocks and attention in 16-bit integers have in common: 32 queries in the lanes
// of vectors.

#include "nn/ops/epilogue.h"
#include "nn/ops/tile.h"
#include "nn/scratch.h"

namespace sdengine::nn::SDENGINE_ISA {

constexpr int kVectors = kQueries / kLanes;
constexpr float kMasked = -1e30f;
alignas(64) constexpr char kZeros[64] = {};

inline const char* head_row(const Map& map, int image, int row, int head, int head_dim) {
  return map.row(std::ptrdiff_t{image} * map.width + row) +
         std::ptrdiff_t{head} * head_dim * size_of(map.type);
}

// Writes queries as [word of channels][query], zero beyond the last query. Reads up to a vector
// beyond a head's channels, which are the next head's or lie in the arena's margin.
inline void transpose_queries(const char* from, std::ptrdiff_t row_bytes, int count, int words,
                              char* to) {
  for (int query = 0; query < kQueries; query += kLanes) {
    for (int word = 0; word < words; word += kLanes) {
      Words square[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        square[i] = query + i < count ? load_words(from + (query + i) * row_bytes + word * 4)
                                      : load_words(kZeros);
      }
      transpose(square);
      const int stored = least(kLanes, words - word);
      for (int i = 0; i < stored; ++i) {
        store_words(to + ((word + i) * kQueries + query) * 4, square[i]);
      }
    }
  }
}

inline void mask_later_keys(float* scores, int first_key, int keys, int first_query) {
  for (int key = 0; key < keys; ++key) {
    for (int v = 0; v < kVectors; ++v) {
      float* at = scores + key * kQueries + v * kLanes;
      const int first_seeing = first_key + key - first_query - v * kLanes;
      store(at, from_lane(first_seeing, load(at), set(kMasked)));
    }
  }
}

inline void scale_sums(float* sums, int channels, const Floats* factors) {
  for (int channel = 0; channel < channels; ++channel) {
    SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) {
      float* at = sums + channel * kQueries + v * kLanes;
      store(at, mul(load(at), factors[v]));
    }
  }
}

// Writes sums [channel][query] as rows of channels.
inline void store_rows(const float* sums, const Map& out, int image, int first, int count, int head,
                       int head_dim) {
  for (int query = 0; query < count; query += kLanes) {
    const int queries = least(kLanes, count - query);
    for (int channel = 0; channel < head_dim; channel += kLanes) {
      const int channels = least(kLanes, head_dim - channel);
      Words square[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const float* from = sums + (channel + i) * kQueries + query;
        square[i] = i < channels ? load_words(from) : load_words(kZeros);
      }
      transpose(square);
      for (int i = 0; i < queries; ++i) {
        char* row = const_cast<char*>(head_row(out, image, first + query + i, head, head_dim));
        store_as(out.type, row, channel, as_floats(square[i]), channels);
      }
    }
  }
}

}  // namespace sdengine::nn::SDENGINE_ISA
