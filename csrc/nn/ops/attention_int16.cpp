// Attention of bf16 maps in 16-bit integers, which processors without products of bf16
// multiply twice as fast as floats, and which keep more bits.
//
// Queries and keys have a scale each, such that their vectors are no longer than 2^15;
// values one for each channel in a block of keys, for a length of 2^14.5. Weights are at most 2^13
// in each block, relative to the block's own largest score, so that a block of 128 has a length of
// at most 2^16.5. By Cauchy and Schwarz no sum leaves 32 bits. Blocks are added up in floats.

#include <cstring>

#include "nn/ops/attention_parts.h"
#include "nn/ops/operations.h"
#include "nn/ops/quantize.h"
#include "nn/parallel.h"

namespace sdengine::nn::SDENGINE_ISA {
namespace {

constexpr float kValueLength = 23000.0f;
constexpr float kWeightBits = 13.0f;
// Rounding queries and keys moves a score by about 1e-5 of the product of their lengths. Where that
// could be more than rounding weights to bf16 does, bf16 is multiplied exactly, if slower.
constexpr float kLargestScore = 128.0f;

// A block of keys of one head, as integers.
struct KeyBlock {
  char* values;  // [channel][key]
  char* keys;    // [key][channel]
  float *key_scales, *value_scales;
  float* longest;  // largest of the keys' scales
};

KeyBlock block_at(char* shared, std::ptrdiff_t index, const AttentionSizes& sizes) {
  KeyBlock block;
  block.values = shared + index * sizes.block_bytes();
  block.keys = block.values + sizes.value_block_bytes;
  block.key_scales = reinterpret_cast<float*>(block.keys + kKeys * sizes.int16_row_bytes);
  block.value_scales = block.key_scales + kKeys;
  block.longest = reinterpret_cast<float*>(block.keys + sizes.int16_block_bytes);
  return block;
}

const std::uint16_t* halves(const Map& map, int image, int row, int head, int head_dim) {
  return reinterpret_cast<const std::uint16_t*>(head_row(map, image, row, head, head_dim));
}

void round_rows(const std::uint16_t* from, std::ptrdiff_t stride, int count, int channels,
                std::size_t row_bytes, char* to, float* scales) {
  for (int r = 0; r < count; ++r, from += stride, to += row_bytes) {
    scales[r] = quantize_int16([&](int c, int some) { return load_some(from + c, some); }, channels,
                               reinterpret_cast<std::int16_t*>(to));
  }
}

// Rounds values with a scale for each channel and writes them as [channel][key]; the key after an
// odd last one is zero.
void round_values(const std::uint16_t* from, std::ptrdiff_t stride, int count, int channels,
                  std::size_t row_bytes, char* to, float* scales) {
  for (int c = 0; c < channels; c += kLanes) {
    const int some = least(kLanes, channels - c);
    Floats squares = zeros();
    for (int key = 0; key < count; ++key) {
      const Floats value = load_some(from + key * stride + c, some);
      squares = fma(value, value, squares);
    }
    float length[kLanes];
    store(length, root(squares));
    float factor[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      factor[i] = length[i] > 0.0f ? kValueLength / length[i] : 0.0f;
      if (i < some) scales[c + i] = length[i] / kValueLength;
    }
    const Floats factors = load(factor);
    std::int16_t rounded[kLanes];
    char* rows = to + c * row_bytes;
    for (int key = 0; key < count; ++key) {
      store_int16(rounded, mul(load_some(from + key * stride + c, some), factors));
      for (int i = 0; i < some; ++i) {
        std::memcpy(rows + i * row_bytes + key * 2, rounded + i, sizeof rounded[i]);
      }
    }
    for (int i = 0; i < some; ++i) std::memset(rows + i * row_bytes + count * 2, 0, 2);
  }
}

struct Own {
  char *queries, *weights, *query_rows;
  float *scores, *sums, *out, *query_scales;
};

Own own_at(char* at, const AttentionSizes& sizes) {
  Own own;
  own.queries = at;
  own.weights = own.queries + sizes.query_bytes;
  own.scores = reinterpret_cast<float*>(own.weights + sizes.weight_bytes);
  own.sums = own.scores + sizes.score_bytes / 4;
  own.out = own.sums + sizes.sum_bytes / 4;
  own.query_scales = own.out + sizes.sum_bytes / 4;
  own.query_rows = reinterpret_cast<char*>(own.query_scales + kPanel);
  return own;
}

// The largest of some scales; NaN if one is.
float largest_of(const float* scales, int count) {
  float found = 0.0f;
  for (int i = 0; i < count; ++i) found = scales[i] <= found ? found : scales[i];
  return found;
}

// Turns sums, integers where key_scales is given, into powers of two to be, in place, and finds
// the largest of each query.
void scale_scores(float* scores, int keys, const float* key_scales, const Floats* query_scales,
                  Floats* highest) {
  for (int v = 0; v < kVectors; ++v) highest[v] = set(kMasked);
  for (int key = 0; key < keys; ++key) {
    const Floats key_scale = set(key_scales != nullptr ? key_scales[key] : 1.0f);
    SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) {
      float* at = scores + key * kQueries + v * kLanes;
      const Floats sum =
          key_scales != nullptr ? load_int32(reinterpret_cast<const std::int32_t*>(at)) : load(at);
      const Floats score = mul(sum, mul(key_scale, query_scales[v]));
      store(at, score);
      highest[v] = larger(highest[v], score);
    }
  }
}

inline Floats weight_of(Floats score, Floats shift) {
  return exp2_short(larger(set(-126.0f), sub(score, shift)));  // in this order NaN stays
}

// Writes weights as pairs of keys and returns their sums.
void weigh(const float* scores, int keys, const Floats* highest, char* weights, Floats* total) {
  Floats shift[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    shift[v] = sub(highest[v], set(kWeightBits));
    total[v] = zeros();
  }
  auto* to = reinterpret_cast<std::uint32_t*>(weights);
  for (int key = 0; key < keys; key += 2, to += kQueries) {
    const float* from = scores + key * kQueries;
    SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) {
      const Floats first = weight_of(load(from + v * kLanes), shift[v]);
      const Floats second =
          key + 1 < keys ? weight_of(load(from + kQueries + v * kLanes), shift[v]) : zeros();
      store_int16_pairs(to + v * kLanes, first, second);
      total[v] = add(total[v], add(first, second));
    }
  }
}

void attend(const AttentionArguments& arguments, const AttentionSizes& sizes, int image, int head,
            int query, char* shared, std::ptrdiff_t first_block, const Own& own) {
  const Map &q = arguments.q, &k = arguments.k;
  const int head_dim = sizes.head_dim, keys = k.width;
  const int count = least(kQueries, q.width - query);
  const int words = words_for(Kind::Int16, head_dim);
  round_rows(halves(q, image, query, head, head_dim), q.stride, count, head_dim,
             sizes.int16_row_bytes, own.query_rows, own.query_scales);
  float longest = 0.0f;
  for (int i = 0; i < sizes.key_blocks; ++i) {
    const float scale = *block_at(shared, first_block + i, sizes).longest;
    longest = scale <= longest ? longest : scale;
  }
  longest *= largest_of(own.query_scales, count) * kLength * kLength;
  const bool exact = !(longest * __builtin_fabsf(arguments.scale) <= kLargestScore);
  for (int i = 0; i < kQueries; ++i) {
    if (exact) own.query_scales[i] = 1.0f;
    if (i >= count) own.query_scales[i] = 0.0f;
  }
  transpose_queries(
      exact ? head_row(q, image, query, head, head_dim) : own.query_rows,
      static_cast<std::ptrdiff_t>(exact ? q.stride * sizeof(std::uint16_t) : sizes.int16_row_bytes),
      count, words, own.queries);
  Floats query_scales[kVectors], highest[kVectors], total[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    query_scales[v] = mul(load(own.query_scales + v * kLanes), set(arguments.scale * 1.44269504f));
    highest[v] = set(kMasked);
    total[v] = zeros();
  }
  std::memset(own.out, 0, sizes.sum_bytes);
  for (int first = 0; first < keys; first += kKeys) {
    if (arguments.causal && first >= query + kQueries) break;
    const int seen = least(kKeys, keys - first);
    const KeyBlock block = block_at(shared, first_block + first / kKeys, sizes);
    Floats block_highest[kVectors], block_total[kVectors];
    if (exact) {
      multiply(Kind::BFloat16, seen, head_row(k, image, first, head, head_dim),
               k.stride * static_cast<std::ptrdiff_t>(sizeof(std::uint16_t)), own.queries, words,
               own.scores, false, nullptr);
    } else {
      multiply(Kind::Int16, seen, block.keys, static_cast<std::ptrdiff_t>(sizes.int16_row_bytes),
               own.queries, words, own.scores, false, nullptr);
    }
    scale_scores(own.scores, seen, exact ? nullptr : block.key_scales, query_scales, block_highest);
    if (arguments.causal && first + seen > query) {
      mask_later_keys(own.scores, first, seen, query);
      for (int v = 0; v < kVectors; ++v) block_highest[v] = set(kMasked);
      for (int key = 0; key < seen; ++key) {
        for (int v = 0; v < kVectors; ++v) {
          block_highest[v] =
              larger(block_highest[v], load(own.scores + key * kQueries + v * kLanes));
        }
      }
    }
    weigh(own.scores, seen, block_highest, own.weights, block_total);
    multiply(Kind::Int16, head_dim, block.values,
             static_cast<std::ptrdiff_t>(sizes.value_row_bytes), own.weights,
             words_for(Kind::Int16, seen), own.sums, false, nullptr);
    Floats before[kVectors], now[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const Floats raised = larger(highest[v], block_highest[v]);
      before[v] = exp2(larger(set(-126.0f), sub(highest[v], raised)));
      now[v] = exp2(larger(set(-126.0f), sub(block_highest[v], raised)));
      total[v] = fma(total[v], before[v], mul(block_total[v], now[v]));
      highest[v] = raised;
    }
    for (int channel = 0; channel < head_dim; ++channel) {
      const Floats scale = set(block.value_scales[channel]);
      SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) {
        float* at = own.out + channel * kQueries + v * kLanes;
        const float* sums = own.sums + channel * kQueries + v * kLanes;
        const Floats whole = load_int32(reinterpret_cast<const std::int32_t*>(sums));
        store(at, fma(load(at), before[v], mul(whole, mul(scale, now[v]))));
      }
    }
  }
  Floats inverse[kVectors];
  for (int v = 0; v < kVectors; ++v) inverse[v] = div(set(1.0f), total[v]);
  scale_sums(own.out, head_dim, inverse);
  store_rows(own.out, arguments.out, image, query, count, head, head_dim);
}

}  // namespace

void attention_int16(const AttentionArguments& arguments, ThreadPool& pool,
                     const Scratch& scratch) {
  const AttentionSizes sizes(arguments);
  const Map &q = arguments.q, &k = arguments.k, &v = arguments.v;
  const std::ptrdiff_t heads = std::ptrdiff_t{q.images} * arguments.heads;
  in_parallel(pool, heads * sizes.key_blocks, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
    for (std::ptrdiff_t at = first; at < last; ++at) {
      const int index = static_cast<int>(at / sizes.key_blocks);
      const int key = static_cast<int>(at % sizes.key_blocks) * kKeys;
      const int count = least(kKeys, k.width - key);
      const int image = index / arguments.heads, head = index % arguments.heads;
      const KeyBlock block = block_at(scratch.shared, at, sizes);
      round_rows(halves(k, image, key, head, sizes.head_dim), k.stride, count, sizes.head_dim,
                 sizes.int16_row_bytes, block.keys, block.key_scales);
      *block.longest = largest_of(block.key_scales, count);
      round_values(halves(v, image, key, head, sizes.head_dim), v.stride, count, sizes.head_dim,
                   sizes.value_row_bytes, block.values, block.value_scales);
    }
  });
  const std::ptrdiff_t query_blocks = (q.width + kQueries - 1) / kQueries;
  in_parallel(pool, heads * query_blocks, [&](std::ptrdiff_t first, std::ptrdiff_t last, int part) {
    const Own own = own_at(scratch.of(part), sizes);
    for (std::ptrdiff_t at = first; at < last; ++at) {
      const int index = static_cast<int>(at / query_blocks);
      const int query = static_cast<int>(at % query_blocks) * kQueries;
      attend(arguments, sizes, index / arguments.heads, index % arguments.heads, query,
             scratch.shared, std::ptrdiff_t{index} * sizes.key_blocks, own);
    }
  });
}

}  // namespace sdengine::nn::SDENGINE_ISA
