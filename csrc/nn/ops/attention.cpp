// Attention without keeping the scores: keys pass in blocks, and what was summed up so far is
// scaled whenever a larger score appears. Both products are computed transposed, with 32 queries in
// the lanes of vectors: no sum ever runs across lanes, and a head needs no padding. Source:
// "FlashAttention" (Dao et al. 2022), algorithm 1.

#include <cstring>

#include "nn/ops/attention_parts.h"
#include "nn/ops/operations.h"
#include "nn/parallel.h"
#ifdef __AVX512BF16__
#include "nn/ops/attention_bf16.h"
#endif

namespace sdengine::nn::SDENGINE_ISA {
namespace {

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

struct Running {
  Floats highest[kVectors], total[kVectors];
};

// Raises the running maxima to the block's and says whether one rose.
bool raise(const float* scores, int keys, Floats* highest) {
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

// Turns scores into exponentials, two keys at a time, as the second product wants them.
// An odd last key has a masked one after it.
void exponentiate(float* scores, int keys, float factor, Type type, Running& running,
                  char* weights) {
  for (int v = 0; v < kVectors && keys % 2 == 1; ++v) {
    store(scores + keys * kQueries + v * kLanes, set(kMasked));
  }
#ifdef __AVX512BF16__
  if (type == Type::BFloat16) {
    return exponentiate_halves(scores, keys + keys % 2, factor, running.highest, running.total,
                               weights);
  }
#else
  (void)type;
#endif
  const Floats factors = set(factor);
  SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) {
    const Floats shift = mul(running.highest[v], factors);
    Floats even = zeros(), odd = zeros();
    const float* from = scores + v * kLanes;
    for (int key = 0; key < keys; key += 2, from += 2 * kQueries) {
      const Floats first = weight_of(load(from), factors, shift);
      const Floats second = weight_of(load(from + kQueries), factors, shift);
      even = add(even, first);
      odd = add(odd, second);
      float* to = reinterpret_cast<float*>(weights) + key * kQueries + v * kLanes;
      store(to, first);
      store(to + kQueries, second);
    }
    running.total[v] = add(running.total[v], add(even, odd));
  }
}

void attend(const AttentionArguments& arguments, const AttentionSizes& sizes, int image, int head,
            int query, const char* values, const Block& block, float key_length) {
  const Map &q = arguments.q, &k = arguments.k;
  const Kind kind = q.type == Type::BFloat16 ? Kind::BFloat16 : Kind::Float32;
  const int head_dim = sizes.head_dim, keys = k.width;
  const int head_lanes = head_dim * sizes.item_bytes / 4;
  const int count = least(kQueries, q.width - query);
  const float factor = arguments.scale * 1.44269504f;
  transpose_queries(head_row(q, image, query, head, head_dim),
                    q.stride * static_cast<std::ptrdiff_t>(size_of(q.type)), count, head_lanes,
                    block.queries);
  Running running;
  for (int v = 0; v < kVectors; ++v) {
    running.highest[v] = set(kMasked);
    running.total[v] = zeros();
  }
#ifdef __AVX512BF16__
  const bool bounded = kind == Kind::BFloat16 && !arguments.causal &&
                       largest_power(block.queries, head_lanes, factor, key_length) <= kBound;
#else
  constexpr bool bounded = false;
  (void)key_length;
#endif
  for (int first = 0; first < keys; first += kKeys, values += sizes.value_block_bytes) {
    if (bounded) {
#ifdef __AVX512BF16__
      const int seen = least(kKeys, keys - first);
      weigh_keys(head_row(k, image, first, head, head_dim),
                 k.stride * static_cast<std::ptrdiff_t>(size_of(k.type)), seen, block.queries,
                 head_lanes, factor, running.total, block.scores, block.weights);
      multiply(kind, head_dim, values, sizes.value_row_bytes, block.weights, lanes_for(kind, seen),
               block.sums, first > 0, nullptr);
#endif
      continue;
    }
    if (arguments.causal && first >= query + kQueries) break;
    const int seen = least(kKeys, keys - first);
    multiply(kind, seen, head_row(k, image, first, head, head_dim),
             k.stride * static_cast<std::ptrdiff_t>(size_of(k.type)), block.queries, head_lanes,
             block.scores, false, nullptr);
    if (arguments.causal && first + seen > query) {
      mask_later_keys(block.scores, first, seen, query);
    }
    Floats before[kVectors];
    for (int v = 0; v < kVectors; ++v) before[v] = running.highest[v];
    if (raise(block.scores, seen, running.highest) && first > 0) {
      Floats factors[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        factors[v] = weight_of(before[v], set(factor), mul(running.highest[v], set(factor)));
        running.total[v] = mul(running.total[v], factors[v]);
      }
      scale_sums(block.sums, head_dim, factors);
    }
    exponentiate(block.scores, seen, factor, q.type, running, block.weights);
    multiply(kind, head_dim, values, sizes.value_row_bytes, block.weights, lanes_for(kind, seen),
             block.sums, first > 0, nullptr);
  }
  Floats inverse[kVectors];
  for (int v = 0; v < kVectors; ++v) inverse[v] = div(set(1.0f), running.total[v]);
  scale_sums(block.sums, head_dim, inverse);
  store_rows(block.sums, arguments.out, image, query, count, head, head_dim);
}

}  // namespace

void attention(const AttentionArguments& arguments, ThreadPool& pool, const Scratch& scratch) {
#ifndef __AVX512BF16__
  if (arguments.q.type == Type::BFloat16) {
    return attention_in_whole_numbers(arguments, pool, scratch);
  }
#endif
  const AttentionSizes sizes(arguments);
  const Map &q = arguments.q, &v = arguments.v;
  const std::ptrdiff_t heads = std::ptrdiff_t{q.images} * arguments.heads;
  const auto block_of = [&](std::ptrdiff_t index) {
    return scratch.shared + index * sizes.value_block_bytes;
  };
  // Of the longest key in each block.
  auto* lengths = reinterpret_cast<float*>(block_of(heads * sizes.key_blocks));
  in_parallel(pool, heads * sizes.key_blocks, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
    for (std::ptrdiff_t at = first; at < last; ++at) {
      const int head = static_cast<int>(at / sizes.key_blocks);
      const int key = static_cast<int>(at % sizes.key_blocks) * kKeys;
      const int count = least(kKeys, v.width - key);
      const int image = head / arguments.heads, in_image = head % arguments.heads;
      if (v.type == Type::BFloat16) {
        transpose_values<std::uint16_t>(v, image, in_image, key, count, sizes, block_of(at));
#ifdef __AVX512BF16__
        const Map& k = arguments.k;
        lengths[at] = longest_row(head_row(k, image, key, in_image, sizes.head_dim),
                                  k.stride * static_cast<std::ptrdiff_t>(size_of(k.type)), count,
                                  sizes.head_dim);
#endif
      } else {
        transpose_values<float>(v, image, in_image, key, count, sizes, block_of(at));
      }
    }
  });
  const std::ptrdiff_t query_blocks = (q.width + kQueries - 1) / kQueries;
  in_parallel(pool, heads * query_blocks, [&](std::ptrdiff_t first, std::ptrdiff_t last, int part) {
    char* own = scratch.of(part);
    Block block;
    block.queries = own;
    block.weights = block.queries + sizes.query_bytes;
    block.scores = reinterpret_cast<float*>(block.weights + sizes.weight_bytes);
    block.sums = block.scores + sizes.score_bytes / 4;
    for (std::ptrdiff_t at = first; at < last; ++at) {
      const int head = static_cast<int>(at / query_blocks);
      const int query = static_cast<int>(at % query_blocks) * kQueries;
      float longest = 0.0f;
      for (int key = 0; key < sizes.key_blocks; ++key) {
        const float length = lengths[std::ptrdiff_t{head} * sizes.key_blocks + key];
        longest = length <= longest ? longest : length;  // a NaN stays
      }
      attend(arguments, sizes, head / arguments.heads, head % arguments.heads, query,
             block_of(std::ptrdiff_t{head} * sizes.key_blocks), block, longest);
    }
  });
}

}  // namespace sdengine::nn::SDENGINE_ISA
