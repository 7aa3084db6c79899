// Attention of fp32 maps, and the choice among the kinds.

#include "nn/ops/attention_blocks.h"
#include "nn/ops/operations.h"

namespace sdengine::nn::SDENGINE_ISA {
namespace {

struct Float32Numbers {
  using Value = float;
  static constexpr Kind kKind = Kind::Float32;
  static constexpr bool kBoundsScores = false;

  // scores, weights: [keys][queries], keys even. highest, total: [kVectors].
  static void exponentiate(const float* scores, int keys, float factor, const Floats* highest,
                           Floats* total, char* weights) {
    const Floats factors = set(factor);
    SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) {
      const Floats shift = mul(highest[v], factors);
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
      total[v] = add(total[v], add(even, odd));
    }
  }
};

}  // namespace

void attention(const AttentionArguments& arguments, ThreadPool& pool, const Scratch& scratch) {
  if (arguments.q.type == Type::Float32) {
    attend_by_blocks<Float32Numbers>(arguments, pool, scratch);
  } else if constexpr (kMultipliesBf16) {
    attention_bf16(arguments, pool, scratch);
  } else {
    attention_int16(arguments, pool, scratch);
  }
}

}  // namespace sdengine::nn::SDENGINE_ISA
