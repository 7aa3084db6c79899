#pragma once

// Attention without keeping the scores: keys pass in blocks, and what was summed up so far is
// scaled whenever a larger score appears. Both products are computed transposed, with 32 queries in
// the lanes of vectors: no sum ever runs across lanes, and a head needs no padding. Source:
// "FlashAttention" (Dao et al. 2022), algorithm 1.
//
// A template over the numbers of the maps, `Numbers`:
//   Value, kKind    what a map holds, and how it is multiplied
//   exponentiate    turns the scores of an even number of keys into weights and adds them up
//   kBoundsScores   whether it can tell from lengths that scores need no maximum taken off; then
//                   also longest_row, are_bounded and weigh_keys (see attention_bf16.cpp)

#include "nn/ops/attention_parts.h"
#include "nn/parallel.h"

namespace sdengine::nn::SDENGINE_ISA {

// Writes the values of a block of keys as [channel][key], zero beyond the last key.
template <typename T>
void transpose_values(const Map& v, int image, int head, int first, int count,
                      const AttentionSizes& sizes, char* to) {
  const T* from = reinterpret_cast<const T*>(head_row(v, image, first, head, sizes.head_dim));
  for (int channel = 0; channel < sizes.head_dim; ++channel) {
    T* row = reinterpret_cast<T*>(to + channel * sizes.value_row_bytes);
    for (int key = 0; key < count; ++key) row[key] = from[key * v.stride + channel];
    row[count] = 0;  // there is room for one more, and pairs of keys are multiplied
  }
}

struct Block {
  char* queries;
  char* weights;
  float* scores;
  float* sums;  // [channels][queries]
};

// Raises the running maxima to the block's and says whether one rose.
inline bool raise(const float* scores, int keys, Floats* highest) {
  Floats raised[kVectors];
  SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) raised[v] = highest[v];
  for (int key = 0; key < keys; ++key) {
    SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) {
      raised[v] = larger(raised[v], load(scores + key * kQueries + v * kLanes));
    }
  }
  bool rose = false;
  SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) {
    rose |= any_larger(raised[v], highest[v]);
    highest[v] = raised[v];
  }
  return rose;
}

inline Floats weight_of(Floats score, Floats factor, Floats shift) {
  return exp2(larger(sub(mul(score, factor), shift), set(-126.0f)));
}

// The highest score of each query so far, and the sum of its weights.
struct Running {
  Floats highest[kVectors], total[kVectors];

  Running() {
    for (int v = 0; v < kVectors; ++v) {
      highest[v] = set(kMasked);
      total[v] = zeros();
    }
  }
};

// What a thread works on: 32 queries of one head of one image.
struct Work {
  const AttentionArguments& arguments;
  const AttentionSizes& sizes;
  int image, head, query;
  float factor;  // scale, for exponentials to the base of 2

  Work(const AttentionArguments& of, const AttentionSizes& its_sizes, int its_image, int its_head,
       int its_query)
      : arguments(of),
        sizes(its_sizes),
        image(its_image),
        head(its_head),
        query(its_query),
        factor(of.scale * 1.44269504f) {}

  const char* key_rows(int first) const {
    return head_row(arguments.k, image, first, head, sizes.head_dim);
  }
  std::ptrdiff_t key_bytes() const {
    return arguments.k.stride * static_cast<std::ptrdiff_t>(size_of(arguments.k.type));
  }
  int head_words() const { return sizes.head_dim * sizes.item_bytes / 4; }
};

// Computes the weights of `seen` keys from `first` on, relative to the highest score so far.
template <typename Numbers>
void score_keys(const Work& work, int first, int seen, const Block& block, Running& running) {
  multiply(Numbers::kKind, seen, work.key_rows(first), work.key_bytes(), block.queries,
           work.head_words(), block.scores, false, nullptr);
  if (work.arguments.causal && first + seen > work.query) {
    mask_later_keys(block.scores, first, seen, work.query);
  }
  Floats before[kVectors];
  for (int v = 0; v < kVectors; ++v) before[v] = running.highest[v];
  if (raise(block.scores, seen, running.highest) && first > 0) {
    const Floats factor = set(work.factor);
    Floats factors[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      factors[v] = weight_of(before[v], factor, mul(running.highest[v], factor));
      running.total[v] = mul(running.total[v], factors[v]);
    }
    scale_sums(block.sums, work.sizes.head_dim, factors);
  }
  // Keys are weighed in pairs: an odd last one has a masked one after it.
  for (int v = 0; v < kVectors && seen % 2 == 1; ++v) {
    store(block.scores + seen * kQueries + v * kLanes, set(kMasked));
  }
  Numbers::exponentiate(block.scores, seen + seen % 2, work.factor, running.highest, running.total,
                        block.weights);
}

// values: the head's blocks of values. key_length: of its longest key, where scores are bounded.
template <typename Numbers>
void attend(const Work& work, const char* values, [[maybe_unused]] float key_length,
            const Block& block) {
  const AttentionArguments& arguments = work.arguments;
  const Map& q = arguments.q;
  const int head_dim = work.sizes.head_dim, keys = arguments.k.width;
  const int count = least(kQueries, q.width - work.query);
  transpose_queries(head_row(q, work.image, work.query, work.head, head_dim),
                    q.stride * static_cast<std::ptrdiff_t>(size_of(q.type)), count,
                    work.head_words(), block.queries);
  [[maybe_unused]] bool bounded = false;
  if constexpr (Numbers::kBoundsScores) {
    bounded = !arguments.causal &&
              Numbers::are_bounded(block.queries, work.head_words(), work.factor, key_length);
  }
  Running running;
  for (int first = 0; first < keys; first += kKeys, values += work.sizes.value_block_bytes) {
    if (arguments.causal && first >= work.query + kQueries) break;
    const int seen = least(kKeys, keys - first);
    if constexpr (Numbers::kBoundsScores) {
      if (bounded) {
        Numbers::weigh_keys(work.key_rows(first), work.key_bytes(), seen, block.queries,
                            work.head_words(), work.factor, running.total, block.scores,
                            block.weights);
      } else {
        score_keys<Numbers>(work, first, seen, block, running);
      }
    } else {
      score_keys<Numbers>(work, first, seen, block, running);
    }
    multiply(Numbers::kKind, head_dim, values, work.sizes.value_row_bytes, block.weights,
             words_for(Numbers::kKind, seen), block.sums, first > 0, nullptr);
  }
  Floats inverse[kVectors];
  for (int v = 0; v < kVectors; ++v) inverse[v] = div(set(1.0f), running.total[v]);
  scale_sums(block.sums, head_dim, inverse);
  store_rows(block.sums, arguments.out, work.image, work.query, count, work.head, head_dim);
}

// Lays out the values of every head, and where scores are bounded notes the longest key of each
// block of keys.
template <typename Numbers>
void prepare_keys(const AttentionArguments& arguments, const AttentionSizes& sizes,
                  ThreadPool& pool, char* values, [[maybe_unused]] float* key_lengths) {
  const Map &q = arguments.q, &k = arguments.k;
  const std::ptrdiff_t blocks = std::ptrdiff_t{q.images} * arguments.heads * sizes.key_blocks;
  in_parallel(pool, blocks, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
    for (std::ptrdiff_t at = first; at < last; ++at) {
      const int index = static_cast<int>(at / sizes.key_blocks);
      const int key = static_cast<int>(at % sizes.key_blocks) * kKeys;
      const int count = least(kKeys, k.width - key);
      const int image = index / arguments.heads, head = index % arguments.heads;
      transpose_values<typename Numbers::Value>(arguments.v, image, head, key, count, sizes,
                                                values + at * sizes.value_block_bytes);
      if constexpr (Numbers::kBoundsScores) {
        key_lengths[at] = Numbers::longest_row(
            head_row(k, image, key, head, sizes.head_dim),
            k.stride * static_cast<std::ptrdiff_t>(size_of(k.type)), count, sizes.head_dim);
      }
    }
  });
}

inline Block block_in(char* own, const AttentionSizes& sizes) {
  Block block;
  block.queries = own;
  block.weights = block.queries + sizes.query_bytes;
  block.scores = reinterpret_cast<float*>(block.weights + sizes.weight_bytes);
  block.sums = block.scores + sizes.score_bytes / 4;
  return block;
}

// The largest of some lengths; NaN if one is.
inline float longest_of(const float* lengths, int count) {
  float longest = 0.0f;
  for (int i = 0; i < count; ++i) longest = lengths[i] <= longest ? longest : lengths[i];
  return longest;
}

template <typename Numbers>
void attend_by_blocks(const AttentionArguments& arguments, ThreadPool& pool,
                      const Scratch& scratch) {
  const AttentionSizes sizes(arguments);
  const Map& q = arguments.q;
  const std::ptrdiff_t heads = std::ptrdiff_t{q.images} * arguments.heads;
  char* const values = scratch.shared;
  auto* const key_lengths =
      reinterpret_cast<float*>(values + heads * sizes.key_blocks * sizes.value_block_bytes);
  prepare_keys<Numbers>(arguments, sizes, pool, values, key_lengths);
  const std::ptrdiff_t query_blocks = (q.width + kQueries - 1) / kQueries;
  in_parallel(pool, heads * query_blocks, [&](std::ptrdiff_t first, std::ptrdiff_t last, int part) {
    const Block block = block_in(scratch.of(part), sizes);
    for (std::ptrdiff_t at = first; at < last; ++at) {
      const int index = static_cast<int>(at / query_blocks);
      const std::ptrdiff_t first_block = std::ptrdiff_t{index} * sizes.key_blocks;
      const Work work(arguments, sizes, index / arguments.heads, index % arguments.heads,
                      static_cast<int>(at % query_blocks) * kQueries);
      float key_length = 0.0f;
      if constexpr (Numbers::kBoundsScores) {
        key_length = longest_of(key_lengths + first_block, sizes.key_blocks);
      }
      attend<Numbers>(work, values + first_block * sizes.value_block_bytes, key_length, block);
    }
  });
}

}  // namespace sdengine::nn::SDENGINE_ISA
