// The most products that this instruction set can add up, which benchmarks divide by.

#include "nn/ops/operations.h"
#include "nn/simd/simd.h"

namespace sdengine::nn::SDENGINE_ISA {
namespace {

constexpr int kSums = kTileRows * kTileVectors;

// The register tile without what it waits for: all that it reads is in the nearest cache.
template <typename Dot>
__attribute__((noinline)) void add_up(std::int64_t rounds) {
  char a[kTileRows * 4] = {}, b[kTileVectors * kLanes * 4] = {}, kept[kLanes * 4];
  typename Dot::Sum sums[kTileRows][kTileVectors];
  SDENGINE_UNROLL for (int r = 0; r < kTileRows; ++r) {
    SDENGINE_UNROLL for (int v = 0; v < kTileVectors; ++v) {
      sums[r][v] = zero_sum(typename Dot::Sum{});
    }
  }
  for (std::int64_t round = 0; round < rounds; ++round) {
    // Both may hold other values now, so that nothing can be left out.
    asm volatile("" : : "r"(a), "r"(b) : "memory");
    Words columns[kTileVectors];
    SDENGINE_UNROLL for (int v = 0; v < kTileVectors; ++v) {
      columns[v] = load_words(b + v * kLanes * 4);
    }
    SDENGINE_UNROLL for (int r = 0; r < kTileRows; ++r) {
      const Words row = broadcast(a + r * 4);
      SDENGINE_UNROLL for (int v = 0; v < kTileVectors; ++v) {
        sums[r][v] = Dot::dot(sums[r][v], row, columns[v]);
      }
    }
  }
  SDENGINE_UNROLL for (int r = 0; r < kTileRows; ++r) {
    SDENGINE_UNROLL for (int v = 0; v < kTileVectors; ++v) {
      store_sum(kept, sums[r][v]);
      asm volatile("" : : "r"(kept) : "memory");
    }
  }
}

}  // namespace

std::int64_t peak(Kind kind, std::int64_t rounds) {
  std::int64_t values = 1;  // of each side in a word
  if (kind == Kind::Float32) {
    add_up<DotFloat>(rounds);
  } else if (kind == Kind::BFloat16) {
    add_up<DotBf16>(rounds);
    values = 2;
  } else if (kind == Kind::Int16) {
    add_up<DotInt16>(rounds);
    values = 2;
  } else {
    add_up<DotInt8>(rounds);
    values = 4;
  }
  return rounds * kSums * kLanes * values * 2;
}

}  // namespace sdengine::nn::SDENGINE_ISA
