#include "nn/packing.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/numbers.h"

namespace sdengine::nn {
namespace {

constexpr double kLength = 65000.0;  // below 2^16 by more than rounding adds

// Where value `k` of a column lies in its panel, in bytes.
std::size_t place(Kind kind, int k, int column) {
  const int values = values_per_word(kind);
  return (std::size_t(k / values) * kPanel + column % kPanel) * 4 +
         std::size_t(k % values) * (4 / values);
}

// Rows of G, by which the weights are transformed: 1, x, x^2 at each point, divided by the product
// of its distances to the others.
std::vector<double> transform_rows(int tile) {
  if (tile == 2) return {1, 0, 0, 0.5, 0.5, 0.5, 0.5, -0.5, 0.5, 0, 0, 1};
  const double a = 2.0 / 3.0, b = 4.0 / 3.0;
  const double of_zero = 1 / (a * a * b * b);
  const double of_a = 1 / (2 * a * a * (a * a - b * b)), of_b = 1 / (2 * b * b * (b * b - a * a));
  return {of_zero, 0,         0,
          of_a,    of_a * a,  of_a * a * a,
          of_a,    -of_a * a, of_a * a * a,
          of_b,    of_b * b,  of_b * b * b,
          of_b,    -of_b * b, of_b * b * b,
          0,       0,         1};
}

// What turns a column into 16-bit numbers whose vector is no longer than kLength; 0 for zeros.
double factor_for(const float* values, int count) {
  double squares = 0.0, peak = 0.0;
  for (int i = 0; i < count; ++i) {
    squares += double(values[i]) * values[i];
    peak = std::max(peak, std::fabs(double(values[i])));
  }
  return peak > 0.0 ? std::min(kLength / std::sqrt(squares), 32767.0 / peak) : 0.0;
}

}  // namespace

std::size_t panels_bytes(Kind kind, int n, int k) {
  return std::size_t((n + kPanel - 1) / kPanel) * words_for(kind, k) * kPanel * 4;
}

void pack_panels(Kind kind, const float* matrix, int n, int k, char* to, float* scales,
                 std::int32_t* sums) {
  std::memset(to, 0, panels_bytes(kind, n, k));
  const std::size_t panel_bytes = std::size_t(words_for(kind, k)) * kPanel * 4;
  const int padded = (n + kPanel - 1) / kPanel * kPanel;
  if (kind == Kind::Int8 || kind == Kind::Int16) std::fill_n(scales, padded, 0.0f);
  if (kind == Kind::Int8) std::fill_n(sums, padded, 0);
  for (int column = 0; column < n; ++column) {
    const float* row = matrix + std::size_t(column) * k;
    char* panel = to + column / kPanel * panel_bytes;
    if (kind == Kind::Int8) {
      float peak = 0.0f;
      for (int i = 0; i < k; ++i) peak = std::max(peak, std::fabs(row[i]));
      const float scale = peak > 0.0f ? peak / 127.0f : 1.0f;
      std::int32_t sum = 0;
      for (int i = 0; i < k; ++i) {
        const auto value = static_cast<std::int8_t>(std::lrintf(row[i] / scale));
        panel[place(kind, i, column)] = static_cast<char>(value);
        sum += value;
      }
      scales[column] = scale;
      sums[column] = sum;
      continue;
    }
    if (kind == Kind::Int16) {
      const double factor = factor_for(row, k);
      for (int i = 0; i < k; ++i) {
        const auto value = static_cast<std::int16_t>(std::lrint(row[i] * factor));
        std::memcpy(panel + place(kind, i, column), &value, sizeof value);
      }
      scales[column] = factor > 0.0 ? static_cast<float>(1.0 / factor) : 0.0f;
      continue;
    }
    for (int i = 0; i < k; ++i) {
      char* at = panel + place(kind, i, column);
      if (kind == Kind::BFloat16) {
        const auto half = cpu::from_float<cpu::BFloat16>(row[i]);
        std::memcpy(at, &half, sizeof half);
      } else {
        std::memcpy(at, &row[i], sizeof row[i]);
      }
    }
  }
}

std::size_t winograd_bytes(Kind kind, int tile, int out_channels, int in_channels) {
  return panels_bytes(kind, out_channels, in_channels) * (tile + 2) * (tile + 2);
}

void pack_winograd(Kind kind, int tile, const float* kernels, int out_channels, int in_channels,
                   char* to, float* scales) {
  const int side = tile + 2, points = side * side;
  const std::vector<double> g = transform_rows(tile);
  const std::size_t panel_bytes = std::size_t(words_for(kind, in_channels)) * kPanel * 4;
  std::memset(to, 0, winograd_bytes(kind, tile, out_channels, in_channels));
  if (kind == Kind::Int16) {
    std::fill_n(scales, std::size_t((out_channels + kPanel - 1) / kPanel) * points * kPanel, 0.0f);
  }
  std::vector<float> transformed(std::size_t(points) * in_channels);
  for (int column = 0; column < out_channels; ++column) {
    for (int c = 0; c < in_channels; ++c) {
      const float* w = kernels + (std::size_t(column) * in_channels + c) * 9;
      double half[6][3];
      for (int i = 0; i < side; ++i) {
        for (int j = 0; j < 3; ++j) {
          half[i][j] = g[i * 3] * w[j] + g[i * 3 + 1] * w[3 + j] + g[i * 3 + 2] * w[6 + j];
        }
      }
      for (int i = 0; i < side; ++i) {
        for (int j = 0; j < side; ++j) {
          const double value =
              g[j * 3] * half[i][0] + g[j * 3 + 1] * half[i][1] + g[j * 3 + 2] * half[i][2];
          transformed[std::size_t(i * side + j) * in_channels + c] = static_cast<float>(value);
        }
      }
    }
    for (int point = 0; point < points; ++point) {
      const float* row = transformed.data() + std::size_t(point) * in_channels;
      const std::size_t panel = std::size_t(column / kPanel) * points + point;
      char* at = to + panel * panel_bytes;
      if (kind == Kind::Float32) {
        for (int c = 0; c < in_channels; ++c) std::memcpy(at + place(kind, c, column), row + c, 4);
        continue;
      }
      const double factor = factor_for(row, in_channels);
      for (int c = 0; c < in_channels; ++c) {
        const auto value = static_cast<std::int16_t>(std::lrint(row[c] * factor));
        std::memcpy(at + place(kind, c, column), &value, sizeof value);
      }
      scales[panel * kPanel + column % kPanel] =
          factor > 0.0 ? static_cast<float>(1.0 / factor) : 0.0f;
    }
  }
}

}  // namespace sdengine::nn
