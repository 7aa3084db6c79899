// Merging and packing of weights, one panel of 32 output features at a time: its rows are read and
// merged in fp32, rounded to what the panel holds, and turned on their side. Reads each tensor once
// and writes each packed byte once; what is between stays in the second-level cache, or for large
// kernels in the third.

#include "nn/packing.h"

#include "common/half.h"
#include "nn/ops/operations.h"
#include "nn/simd/simd.h"

namespace sdengine::nn::SDENGINE_ISA {
namespace {

constexpr double kLength = 65000.0;  // of a row of 16 bits: below 2^16 by more than rounding adds
constexpr int kRows = 4;             // of a tile of sums
constexpr int kVectors = kLanes == 16 ? 4 : 2;
constexpr int kTogether = 8;  // rows that are added up at once, each in its own order
constexpr int kBlock = 16;    // channels that are transformed at once
constexpr int kGates = 16;

std::uint32_t bits(float value) {
  std::uint32_t found;
  __builtin_memcpy(&found, &value, sizeof found);
  return found;
}

float real(std::uint32_t value) {
  float found;
  __builtin_memcpy(&found, &value, sizeof found);
  return found;
}

void read_rows(const Source& source, std::ptrdiff_t first, std::ptrdiff_t count, float* to) {
  if (source.data == nullptr) {
    __builtin_memset(to, 0, count * sizeof(float));
  } else if (source.stored == Stored::Float32) {
    __builtin_memcpy(to, static_cast<const float*>(source.data) + first, count * sizeof(float));
  } else if (source.stored == Stored::Float16) {
    const auto* from = static_cast<const std::uint16_t*>(source.data) + first;
    for (std::ptrdiff_t i = 0; i < count; ++i) to[i] = from_half(from[i]);
  } else {
    const auto* from = static_cast<const std::uint16_t*>(source.data) + first;
    for (std::ptrdiff_t i = 0; i < count; ++i) to[i] = real(std::uint32_t{from[i]} << 16);
  }
}

// Adds a product to some rows times Vectors vectors of columns, of which `columns` are there.
template <int Rows, int Vectors>
SDENGINE_INLINE void add_tile(const Term& term, int row, std::ptrdiff_t k, std::ptrdiff_t column,
                              int columns, float* to) {
  Floats sums[Rows][Vectors];
  SDENGINE_UNROLL for (int r = 0; r < Rows; ++r) {
    SDENGINE_UNROLL for (int v = 0; v < Vectors; ++v) sums[r][v] = zeros();
  }
  const float* down = term.down + column;
  for (int q = 0; q < term.rank; ++q) {
    Floats values[Vectors];
    SDENGINE_UNROLL for (int v = 0; v < Vectors; ++v) {
      values[v] = load_some(down + q * k + v * kLanes, columns - v * kLanes);
    }
    SDENGINE_UNROLL for (int r = 0; r < Rows; ++r) {
      const Floats factor = set(term.up[std::ptrdiff_t(row + r) * term.rank + q]);
      SDENGINE_UNROLL for (int v = 0; v < Vectors; ++v) {
        sums[r][v] = add(sums[r][v], mul(factor, values[v]));
      }
    }
  }
  SDENGINE_UNROLL for (int r = 0; r < Rows; ++r) {
    SDENGINE_UNROLL for (int v = 0; v < Vectors; ++v) {
      float* at = to + r * k + column + v * kLanes;
      const int there = columns - v * kLanes;
      const Floats made = mul(set(term.strength), mul(sums[r][v], set(term.scale)));
      store_some(at, add(load_some(at, there), made), there);
    }
  }
}

template <int Rows>
void add_product(const Term& term, int row, std::ptrdiff_t k, std::ptrdiff_t column, int columns,
                 float* to) {
  if (columns == kVectors * kLanes) {
    add_tile<Rows, kVectors>(term, row, k, column, kVectors * kLanes, to);
    return;
  }
  for (int c = 0; c < columns; c += kLanes) {
    add_tile<Rows, 1>(term, row, k, column + c, least(kLanes, columns - c), to);
  }
}

void add_term(const Term& term, std::ptrdiff_t k, int first, int count, float* to) {
  if (term.up == nullptr) {
    const float* from = term.down + first * k;
    for (std::ptrdiff_t i = 0; i < count * k; ++i) {
      to[i] = to[i] + term.strength * (from[i] * term.scale);
    }
    return;
  }
  // Columns outside: their part of `down` stays in the first-level cache for all rows.
  for (std::ptrdiff_t column = 0; column < k; column += kVectors * kLanes) {
    const int columns =
        static_cast<int>(k - column < kVectors * kLanes ? k - column : kVectors * kLanes);
    int row = 0;
    for (; row + kRows <= count; row += kRows) {
      add_product<kRows>(term, first + row, k, column, columns, to + row * k);
    }
    for (; row < count; ++row) add_product<1>(term, first + row, k, column, columns, to + row * k);
  }
}

bool is_finite(const float* values, std::ptrdiff_t count) {
  std::uint32_t worst = 0;
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    const std::uint32_t magnitude = bits(values[i]) & 0x7fffffffu;
    worst = magnitude > worst ? magnitude : worst;
  }
  return worst < 0x7f800000u;
}

// Row `index` of a weight as it is packed, in its source: which source, which row of it, and how
// many follow that are packed behind it.
struct Run {
  const Source* source;
  int first, count;
};
Run run_at(const Packing& packing, int index, int end) {
  int row = index, together = end - index;
  if (packing.gated) {
    const int block = index / kPanel, within = index % kPanel;
    const int half = within < kGates ? 0 : packing.n / 2;
    row = half + block * kGates + within % kGates;
    together = least(together, kGates - within % kGates);
  }
  const Source* source = packing.sources;
  while (row >= source->rows) row -= (source++)->rows;
  return {source, row, least(together, source->rows - row)};
}

// What turns rows into 16-bit numbers whose vectors are no longer than kLength; 0 for zeros.
void factors_for(const float* rows, std::ptrdiff_t stride, int count, int k, double* factors) {
  for (int first = 0; first < count; first += kTogether) {
    const int some = least(kTogether, count - first);
    double squares[kTogether] = {};
    float peaks[kTogether] = {};
    const float* from = rows + first * stride;
    if (some == kTogether) {
      for (int i = 0; i < k; ++i) {
        SDENGINE_UNROLL for (int r = 0; r < kTogether; ++r) {
          const float value = from[r * stride + i], size = __builtin_fabsf(value);
          squares[r] += static_cast<double>(value) * static_cast<double>(value);
          peaks[r] = size > peaks[r] ? size : peaks[r];
        }
      }
    } else {
      for (int r = 0; r < some; ++r) {
        for (int i = 0; i < k; ++i) {
          const float value = from[r * stride + i], size = __builtin_fabsf(value);
          squares[r] += static_cast<double>(value) * static_cast<double>(value);
          peaks[r] = size > peaks[r] ? size : peaks[r];
        }
      }
    }
    for (int r = 0; r < some; ++r) {
      const double length = kLength / __builtin_sqrt(squares[r]), peak = 32767.0 / peaks[r];
      factors[first + r] = peaks[r] > 0.0f ? (peak < length ? peak : length) : 0.0;
    }
  }
}

// Adding 1.5 * 2^52 rounds to an integer, ties to even, that stands in the lowest bits.
void to_int16(const float* from, int count, double factor, std::int16_t* to) {
  for (int i = 0; i < count; ++i) {
    const double shifted = static_cast<double>(from[i]) * factor + 6755399441055744.0;
    std::int64_t found;
    __builtin_memcpy(&found, &shifted, sizeof found);
    to[i] = static_cast<std::int16_t>(found);
  }
}

float scale_of_int16(double factor) {
  return factor > 0.0 ? static_cast<float>(1.0 / factor) : 0.0f;
}

void to_bf16(const float* from, int count, std::uint16_t* to) {
  for (int i = 0; i < count; ++i) {
    const std::uint32_t value = bits(from[i]);
    const std::uint32_t rounded = (value + 0x7fffu + (value >> 16 & 1u)) >> 16;
    const bool is_nan = (value & 0x7fffffffu) > 0x7f800000u;
    to[i] = static_cast<std::uint16_t>(is_nan ? 0x7fc0u : rounded);
  }
}

void to_int8(const float* from, int count, std::int8_t* to, float& scale, std::int32_t& sum) {
  float peak = 0.0f;
  for (int i = 0; i < count; ++i) {
    const float size = __builtin_fabsf(from[i]);
    peak = size > peak ? size : peak;
  }
  scale = peak > 0.0f ? peak / 127.0f : 1.0f;
  sum = 0;
  for (int i = 0; i < count; ++i) {
    const float shifted = from[i] / scale + 12582912.0f;  // 1.5 * 2^23
    to[i] = static_cast<std::int8_t>(bits(shifted));
    sum += to[i];
  }
}

// Writes rows of words [32][words] as a panel [words][32].
void turn(const float* rows, int words, char* panel) {
  int w = 0;
  for (; w + kLanes <= words; w += kLanes) {
    for (int column = 0; column < kPanel; column += kLanes) {
      Words square[kLanes];
      SDENGINE_UNROLL for (int i = 0; i < kLanes; ++i) {
        square[i] = load_words(rows + std::ptrdiff_t(column + i) * words + w);
      }
      transpose(square);
      SDENGINE_UNROLL for (int i = 0; i < kLanes; ++i) {
        store_words(panel + (std::ptrdiff_t(w + i) * kPanel + column) * 4, square[i]);
      }
    }
  }
  for (; w < words; ++w) {
    for (int column = 0; column < kPanel; ++column) {
      __builtin_memcpy(panel + (std::ptrdiff_t(w) * kPanel + column) * 4,
                       rows + std::ptrdiff_t(column) * words + w, 4);
    }
  }
}

// Rounds rows [count][k] to rows of words [32][words]; those beyond the count are zero.
void round_rows(Kind kind, const float* rows, int count, int k, float* to, float* scales,
                std::int32_t* sums) {
  const int words = words_for(kind, k);
  const bool whole = count == kPanel && k % values_per_word(kind) == 0;
  if (!whole) __builtin_memset(to, 0, sizeof(float) * kPanel * words);
  if (scales != nullptr) __builtin_memset(scales, 0, sizeof(float) * kPanel);
  if (sums != nullptr) __builtin_memset(sums, 0, sizeof(std::int32_t) * kPanel);
  double factors[kPanel];
  if (kind == Kind::Int16) factors_for(rows, k, count, k, factors);
  for (int r = 0; r < count; ++r) {
    const float* from = rows + std::ptrdiff_t(r) * k;
    float* row = to + std::ptrdiff_t(r) * words;
    if (kind == Kind::Float32) {
      __builtin_memcpy(row, from, k * sizeof(float));
    } else if (kind == Kind::BFloat16) {
      to_bf16(from, k, reinterpret_cast<std::uint16_t*>(row));
    } else if (kind == Kind::Int16) {
      to_int16(from, k, factors[r], reinterpret_cast<std::int16_t*>(row));
      scales[r] = scale_of_int16(factors[r]);
    } else {
      to_int8(from, k, reinterpret_cast<std::int8_t*>(row), scales[r], sums[r]);
    }
  }
}

// Rows of G, by which the weights are transformed: 1, x, x^2 at each point, divided by the product
// of its distances to the others.
struct Transform {
  double rows[6][3];
};
Transform transform_for(int tile) {
  if (tile == 2) {
    return {{{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}, {0, 0, 0}, {0, 0, 0}}};
  }
  const double a = 2.0 / 3.0, b = 4.0 / 3.0;
  const double of_zero = 1 / (a * a * b * b);
  const double of_a = 1 / (2 * a * a * (a * a - b * b)), of_b = 1 / (2 * b * b * (b * b - a * a));
  return {{{of_zero, 0, 0},
           {of_a, of_a * a, of_a * a * a},
           {of_a, -of_a * a, of_a * a * a},
           {of_b, of_b * b, of_b * b * b},
           {of_b, -of_b * b, of_b * b * b},
           {0, 0, 1}}};
}

// Transforms the kernels of up to kBlock channels; `to` is [points][channels].
template <int Side>
void transform_block(const Transform& g, const float* kernels, int count, int channels, float* to) {
  double w[9][kBlock] = {};
  for (int c = 0; c < count; ++c) {
    for (int i = 0; i < 9; ++i) w[i][c] = kernels[c * 9 + i];
  }
  double half[Side][3][kBlock];
  for (int i = 0; i < Side; ++i) {
    for (int j = 0; j < 3; ++j) {
      for (int c = 0; c < kBlock; ++c) {
        half[i][j][c] =
            g.rows[i][0] * w[j][c] + g.rows[i][1] * w[3 + j][c] + g.rows[i][2] * w[6 + j][c];
      }
    }
  }
  for (int i = 0; i < Side; ++i) {
    for (int j = 0; j < Side; ++j) {
      float made[kBlock];
      for (int c = 0; c < kBlock; ++c) {
        made[c] = static_cast<float>(g.rows[j][0] * half[i][0][c] + g.rows[j][1] * half[i][1][c] +
                                     g.rows[j][2] * half[i][2][c]);
      }
      __builtin_memcpy(to + std::ptrdiff_t(i * Side + j) * channels, made, count * sizeof(float));
    }
  }
}

void pack_winograd_panel(const Packing& packing, int panel, const float* rows, int count,
                         float* words_at, float* transformed) {
  const int channels = packing.channels, points = packing.points();
  const int words = words_for(packing.kind, channels);
  const Transform g = transform_for(packing.tile);
  float* scales = packing.scales;
  if (packing.kind == Kind::Int16) {
    scales += std::ptrdiff_t(panel) * points * kPanel;
    __builtin_memset(scales, 0, sizeof(float) * points * kPanel);
  }
  __builtin_memset(words_at, 0, sizeof(float) * points * kPanel * words);
  for (int r = 0; r < count; ++r) {
    const float* kernels = rows + std::ptrdiff_t(r) * channels * 9;
    for (int c = 0; c < channels; c += kBlock) {
      const int some = least(kBlock, channels - c);
      if (packing.tile == 4) {
        transform_block<6>(g, kernels + c * 9, some, channels, transformed + c);
      } else {
        transform_block<4>(g, kernels + c * 9, some, channels, transformed + c);
      }
    }
    double factors[36];
    if (packing.kind == Kind::Int16) factors_for(transformed, channels, points, channels, factors);
    for (int point = 0; point < points; ++point) {
      const float* from = transformed + std::ptrdiff_t(point) * channels;
      float* row = words_at + (std::ptrdiff_t(point) * kPanel + r) * words;
      if (packing.kind == Kind::Float32) {
        __builtin_memcpy(row, from, channels * sizeof(float));
      } else {
        to_int16(from, channels, factors[point], reinterpret_cast<std::int16_t*>(row));
        scales[point * kPanel + r] = scale_of_int16(factors[point]);
      }
    }
  }
  char* to = packing.to + std::ptrdiff_t(panel) * points * words * kPanel * 4;
  for (int point = 0; point < points; ++point) {
    turn(words_at + std::ptrdiff_t(point) * kPanel * words, words,
         to + std::ptrdiff_t(point) * words * kPanel * 4);
  }
}

}  // namespace

bool merge_rows(const Source& source, int k, int first, int count, float* to) {
  const std::ptrdiff_t values = std::ptrdiff_t(count) * k;
  read_rows(source, std::ptrdiff_t(first) * k, values, to);
  for (int i = 0; i < source.term_count; ++i) add_term(source.terms[i], k, first, count, to);
  return source.term_count == 0 || is_finite(to, values);
}

bool pack_panel(const Packing& packing, int panel, float* scratch) {
  const int k = packing.k(), first = panel * kPanel, count = least(kPanel, packing.n - first);
  const int words = words_for(packing.kind, packing.inner());
  float* rows = scratch;
  float* packed = rows + std::ptrdiff_t(kPanel) * k;
  float* more = packed + std::ptrdiff_t(packing.points()) * kPanel * words;
  bool finite = true;
  for (int done = 0; done < count;) {
    const Run run = run_at(packing, first + done, first + count);
    finite &= merge_rows(*run.source, k, run.first, run.count, rows + std::ptrdiff_t(done) * k);
    done += run.count;
  }
  if (packing.tile > 0) {
    pack_winograd_panel(packing, panel, rows, count, packed, more);
    return finite;
  }
  if (packing.kernel > 1) {
    const int area = packing.kernel * packing.kernel;
    for (int r = 0; r < count; ++r) {
      const float* from = rows + std::ptrdiff_t(r) * k;
      float* to = more + std::ptrdiff_t(r) * k;
      for (int i = 0; i < area; ++i) {
        for (int c = 0; c < packing.channels; ++c)
          to[i * packing.channels + c] = from[c * area + i];
      }
    }
    rows = more;
  }
  const bool is_int = packing.kind == Kind::Int8 || packing.kind == Kind::Int16;
  round_rows(packing.kind, rows, count, k, packed, is_int ? packing.scales + first : nullptr,
             packing.kind == Kind::Int8 ? packing.sums + first : nullptr);
  turn(packed, words, packing.to + std::ptrdiff_t(panel) * words * kPanel * 4);
  return finite;
}

}  // namespace sdengine::nn::SDENGINE_ISA
