// Attention of bf16 maps, where the processor multiplies bf16: exponentials in 16-bit arithmetic,
// and a product of queries and keys that makes weights of its sums while they are in registers.
// Compiled for the instruction sets that have kMultipliesBf16.

#include "nn/ops/attention_blocks.h"
#include "nn/ops/operations.h"

namespace sdengine::nn::SDENGINE_ISA {
namespace {

// Exponentials for bf16 in 16-bit arithmetic. The exponent of a power of two is kept with 8 bits
// behind the point, which added to the bits of 1.0 is a bf16 of linear mantissa; a table of 64
// entries says what 2^f is above that line. RMS error 2.5e-3, where rounding the exact value
// gives 2.3e-3.
struct PowerTable {
  alignas(64) std::int16_t above[64];
  PowerTable() {
    for (int i = 0; i < 64; ++i) {
      const double f = (4 * i + 1.5) / 256.0;  // the middle of the four values that share an entry
      above[i] =
          static_cast<std::int16_t>(256.0 * (__builtin_exp2(f) - 1.0 - f) + 127.0 * 256.0 + 1.0);
    }
  }
};

// What turning scores into weights takes along in registers.
struct Powers {
  __m512i above_low, above_high, lowest, ones, pairs;

  Powers() {
    static const PowerTable table;
    above_low = _mm512_load_si512(table.above);
    above_high = _mm512_load_si512(table.above + 32);
    lowest = _mm512_set1_epi16(-126 * 256);
    ones = _mm512_set1_epi32(0x3f803f80);
    // Of each 128 bits: four of the first key and four of the second become pairs.
    pairs =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
  }

  // first, second: scores of two keys, times factor minus shift the power of two, times 256.
  SDENGINE_INLINE __m512i weigh(Floats first, Floats second, Floats factor, Floats shift,
                                Floats& total) const {
    const __m512i even = _mm512_cvtps_epi32(_mm512_fmsub_ps(first, factor, shift));
    const __m512i odd = _mm512_cvtps_epi32(_mm512_fmsub_ps(second, factor, shift));
    __m512i power = _mm512_shuffle_epi8(_mm512_packs_epi32(even, odd), pairs);
    power = _mm512_max_epi16(power, lowest);
    const __m512i above =
        _mm512_permutex2var_epi16(above_low, _mm512_srli_epi16(power, 2), above_high);
    // As unsigned numbers: powers above one reach the topmost bit.
    const __m512i halves = _mm512_srli_epi16(_mm512_add_epi16(power, above), 1);
    total = _mm512_dpbf16_ps(total, reinterpret_cast<__m512bh>(halves),
                             reinterpret_cast<__m512bh>(ones));
    return halves;
  }
};

// scores: [keys][queries], keys even. highest, total: [kVectors].
void exponentiate_halves(const float* scores, int keys, float factor, const Floats* highest,
                         Floats* total, char* weights) {
  const Powers powers;
  const Floats factors = set(factor * 256.0f);
  Floats totals[kVectors], shift[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    totals[v] = total[v];
    shift[v] = mul(highest[v], factors);
  }
  for (int key = 0; key < keys; key += 2) {
    SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) {
      const float* from = scores + key * kQueries + v * kLanes;
      const __m512i halves =
          powers.weigh(load(from), load(from + kQueries), factors, shift[v], totals[v]);
      _mm512_storeu_si512(weights + (key / 2 * kQueries + v * kLanes) * 4, halves);
    }
  }
  for (int v = 0; v < kVectors; ++v) total[v] = totals[v];
}

// Scores whose power of two is certain to stay below this need no maximum taken off.
constexpr float kBound = 90.0f;

// Multiplies Rows keys, an even number, by the queries and writes their weights.
template <int Rows>
__attribute__((noinline)) void weigh_tile(const char* keys, std::ptrdiff_t key_bytes,
                                          const char* queries, int words, Floats factor,
                                          Floats* total, char* weights) {
  Floats sum[Rows][kVectors];
  SDENGINE_UNROLL for (int r = 0; r < Rows; ++r) {
    SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = zeros();
  }
  for (int word = 0; word < words; ++word) {
    Words b[kVectors];
    SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) b[v] = load_words(queries + v * 64);
    SDENGINE_UNROLL for (int r = 0; r < Rows; ++r) {
      const Words value = broadcast(keys + r * key_bytes);
      SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = DotBf16::dot(sum[r][v], value, b[v]);
      }
    }
    keys += 4;
    queries += kPanel * 4;
  }
  const Powers powers;
  SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) {
    Floats totals = total[v];
    SDENGINE_UNROLL for (int r = 0; r < Rows; r += 2) {
      const __m512i halves = powers.weigh(sum[r][v], sum[r + 1][v], factor, zeros(), totals);
      _mm512_storeu_si512(weights + (r / 2 * kQueries + v * kLanes) * 4, halves);
    }
    total[v] = totals;
  }
}

// Writes the weights of a block of keys against 32 queries, none of whose scores exceeds kBound.
void weigh_bounded_keys(const char* keys, std::ptrdiff_t key_bytes, int count, const char* queries,
                        int words, float factor, Floats* total, float* scores, char* weights) {
  using Tile = void (*)(const char*, std::ptrdiff_t, const char*, int, Floats, Floats*, char*);
  static constexpr Tile kTiles[] = {nullptr,        &weigh_tile<2>,  &weigh_tile<4>, &weigh_tile<6>,
                                    &weigh_tile<8>, &weigh_tile<10>, &weigh_tile<12>};
  constexpr int kMost = 6;  // pairs
  const Floats factors = set(factor * 256.0f);
  const int pairs = count / 2, strips = (pairs + kMost - 1) / kMost;
  for (int strip = 0; strip < strips; ++strip) {
    const int first = pairs * strip / strips, last = pairs * (strip + 1) / strips;
    kTiles[last - first](keys + 2 * first * key_bytes, key_bytes, queries, words, factors, total,
                         weights + std::ptrdiff_t{first} * kQueries * 4);
  }
  if (count % 2 == 1) {
    multiply(Kind::BFloat16, 1, keys + (count - 1) * key_bytes, key_bytes, queries, words, scores,
             false, nullptr);
    Floats none[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      store(scores + kQueries + v * kLanes, set(-1e30f));
      none[v] = zeros();
    }
    exponentiate_halves(scores, 2, factor, none, total,
                        weights + std::ptrdiff_t{pairs} * kQueries * 4);
  }
}

// The largest power of two that a score of these queries with keys of at most that length can be.
float largest_power(const char* queries, int words, float factor, float key_length) {
  Floats squares = zeros();
  for (int v = 0; v < kVectors; ++v) {
    Floats own = zeros();
    for (int word = 0; word < words; ++word) {
      const Words value = load_words(queries + word * kPanel * 4 + v * 64);
      own = DotBf16::dot(own, value, value);
    }
    squares = larger(squares, own);
  }
  return __builtin_sqrtf(largest(squares)) * key_length * __builtin_fabsf(factor);
}

// The length of the longest of some rows of channels.
float longest_row_of(const char* row, std::ptrdiff_t row_bytes, int count, int channels) {
  float longest = 0.0f;
  for (int r = 0; r < count; ++r, row += row_bytes) {
    const auto* values = reinterpret_cast<const std::uint16_t*>(row);
    Floats squares = zeros();
    for (int c = 0; c < channels; c += kLanes) {
      const Floats value = load_some(values + c, least(kLanes, channels - c));
      squares = fma(value, value, squares);
    }
    const float length = __builtin_sqrtf(sum(squares));
    longest = length > longest ? length : longest;
    if (!(length == length)) return length;  // not a number: no bound holds
  }
  return longest;
}

struct BFloat16Numbers {
  using Value = std::uint16_t;
  static constexpr Kind kKind = Kind::BFloat16;
  static constexpr bool kBoundsScores = true;

  static constexpr auto exponentiate = exponentiate_halves;
  static constexpr auto longest_row = longest_row_of;
  static constexpr auto weigh_keys = weigh_bounded_keys;

  static bool are_bounded(const char* queries, int words, float factor, float key_length) {
    return largest_power(queries, words, factor, key_length) <= kBound;
  }
};

}  // namespace

void attention_bf16(const AttentionArguments& arguments, ThreadPool& pool, const Scratch& scratch) {
  attend_by_blocks<BFloat16Numbers>(arguments, pool, scratch);
}

}  // namespace sdengine::nn::SDENGINE_ISA
