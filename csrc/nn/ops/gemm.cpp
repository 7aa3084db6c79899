// Matrix products with an epilogue. Blocks of panels that fit the second-level cache are passed
// over by strips of rows, whose sums stay in the first-level cache until the epilogue has stored
// them.

#include "nn/ops/gemm.h"

#include "nn/ops/tile.h"

namespace sdengine::nn::SDENGINE_ISA {
namespace {

// Rows of a strip: whole register tiles of every instruction set, one of AVX-512's.
constexpr int kStrip = 12;
static_assert(kStrip % kTileRows == 0);
constexpr std::size_t kBlockBytes = 512 * 1024;
// Zero of unsigned activations; see quantize in linear.cpp.
constexpr int kZeroPoint = 128;

struct Strip {
  float sums[kStrip * kPanel];
};

// Turns integer sums into floats in place.
void dequantize(float* sums, int rows, const float* row_scales, const Panels& weight, int column) {
  for (int at = 0; at < kPanel; at += kLanes) {
    const Floats column_scales = load(weight.column_scales + column + at);
    const Floats shift = weight.kind == Kind::Int8
                             ? mul(load_int32(weight.column_sums + column + at), set(kZeroPoint))
                             : zeros();
    for (int r = 0; r < rows; ++r) {
      float* values = sums + r * kPanel + at;
      const Floats whole = load_int32(reinterpret_cast<const std::int32_t*>(values));
      store(values, mul(sub(whole, shift), mul(column_scales, set(row_scales[r]))));
    }
  }
}

template <Activation A>
void finish(const Finish& finish, std::ptrdiff_t first, int rows, int column, int columns,
            const float* sums) {
  for (int r = 0; r < rows; ++r) {
    const Finish::Row row = finish.row(first + r);
    for (int at = 0; at < columns; at += kLanes) {
      finish.put<A>(row, column + at, load(sums + r * kPanel + at), least(kLanes, columns - at));
    }
  }
}

// The common case without questions in the loop: a whole panel, maps of one type, no row for each
// image.
template <typename T, bool Residual>
void finish_panel(const Epilogue& epilogue, std::ptrdiff_t first, int rows, int column,
                  const float* sums) {
  constexpr int kVectors = kPanel / kLanes;
  Floats bias[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    bias[v] = epilogue.bias != nullptr ? load(epilogue.bias + column + v * kLanes) : zeros();
  }
  const std::ptrdiff_t out_stride = epilogue.out.stride;
  T* out = reinterpret_cast<T*>(epilogue.out.row(first)) + column;
  const T* residual = nullptr;
  std::ptrdiff_t residual_stride = 0;
  if (Residual) {
    residual = reinterpret_cast<const T*>(epilogue.residual->row(first)) + column;
    residual_stride = epilogue.residual->stride;
  }
  for (int r = 0; r < rows; ++r) {
    SDENGINE_UNROLL for (int v = 0; v < kVectors; ++v) {
      Floats sum = add(load(sums + r * kPanel + v * kLanes), bias[v]);
      if (Residual) sum = add(sum, load(residual + v * kLanes));
      store(out + v * kLanes, sum);
    }
    out += out_stride;
    residual += residual_stride;
  }
}

bool finish_quickly(const Epilogue& epilogue, std::ptrdiff_t first, int rows, int column,
                    int columns, const float* sums) {
  const Map* residual = epilogue.residual;
  if (columns != kPanel || epilogue.per_image != nullptr ||
      (residual != nullptr && residual->type != epilogue.out.type)) {
    return false;
  }
  if (epilogue.out.type == Type::BFloat16) {
    if (residual != nullptr) {
      finish_panel<std::uint16_t, true>(epilogue, first, rows, column, sums);
    } else {
      finish_panel<std::uint16_t, false>(epilogue, first, rows, column, sums);
    }
  } else if (residual != nullptr) {
    finish_panel<float, true>(epilogue, first, rows, column, sums);
  } else {
    finish_panel<float, false>(epilogue, first, rows, column, sums);
  }
  return true;
}

void finish_gated(const Finish& finish, std::ptrdiff_t first, int rows, int column, int columns,
                  const float* sums) {
  for (int r = 0; r < rows; ++r) {
    const Finish::Row row = finish.row(first + r);
    for (int at = 0; at < columns / 2; at += kLanes) {
      const float* values = sums + r * kPanel + at;
      finish.put_gated(row, column / 2 + at, load(values), load(values + kPanel / 2),
                       least(kLanes, columns / 2 - at));
    }
  }
}

// Stores the sums of a strip of rows from a panel's column on.
void finish_strip(const Finish& finisher, const Epilogue& epilogue, std::ptrdiff_t at, int height,
                  int column, int columns, const float* sums) {
  switch (epilogue.activation) {
    case Activation::None:
      if (!finish_quickly(epilogue, at, height, column, columns, sums)) {
        finish<Activation::None>(finisher, at, height, column, columns, sums);
      }
      break;
    case Activation::Silu:
      finish<Activation::Silu>(finisher, at, height, column, columns, sums);
      break;
    case Activation::Gelu:
      finish<Activation::Gelu>(finisher, at, height, column, columns, sums);
      break;
    case Activation::QuickGelu:
      finish<Activation::QuickGelu>(finisher, at, height, column, columns, sums);
      break;
    case Activation::Relu:
      finish<Activation::Relu>(finisher, at, height, column, columns, sums);
      break;
    case Activation::Geglu:
      finish_gated(finisher, at, height, column, columns, sums);
      break;
    default:  // the others are operations of their own, which the plan's reader sees to
      break;
  }
}

}  // namespace

void multiply_block(const Rows& rows, std::ptrdiff_t first, int count, const Panels& weight,
                    int panel, int last_panel, const Epilogue& epilogue) {
  const Finish finisher(epilogue);
  const int words = weight.words();
  const std::size_t panel_bytes = weight.panel_bytes();
  const int per_block = kBlockBytes > panel_bytes ? static_cast<int>(kBlockBytes / panel_bytes) : 1;
  const int blocks = (last_panel - panel + per_block - 1) / per_block;
  const int strips = (count + kStrip - 1) / kStrip;
  alignas(64) Strip strip_sums;
  float* sums = strip_sums.sums;
  for (int block = 0; block < blocks; ++block) {
    const int begin = panel + (last_panel - panel) * block / blocks;
    const int end = panel + (last_panel - panel) * (block + 1) / blocks;
    for (int strip = 0; strip < strips; ++strip) {
      const int row = static_cast<int>(std::ptrdiff_t{count} * strip / strips);
      const int last = static_cast<int>(std::ptrdiff_t{count} * (strip + 1) / strips);
      const int height = last - row;
      const char* a = rows.data + row * rows.bytes;
      for (int p = begin; p < end; ++p) {
        const char* here = weight.data + p * panel_bytes;
        // The first strip fetches the next panel from memory, the others the rows of the next.
        const char* next = strip == 0 ? here + panel_bytes : rows.data + last * rows.bytes;
        if (strip == 0 ? p + 1 == weight.panels() : strip + 1 == strips) next = nullptr;
        // The lines that will be written are fetched while the sums are computed.
        const int out_column = p * kPanel / (epilogue.activation == Activation::Geglu ? 2 : 1);
        for (int r = 0; r < height; ++r) {
          const char* out = epilogue.out.row(first + row + r);
          __builtin_prefetch(out + out_column * size_of(epilogue.out.type), 1, 3);
        }
        multiply(weight.kind, height, a, rows.bytes, here, words, sums, false, next);
        const int column = p * kPanel;
        if (rows.scales != nullptr) {
          dequantize(sums, height, rows.scales + row, weight, column);
        }
        const int columns = least(kPanel, weight.n - column);
        finish_strip(finisher, epilogue, first + row, height, column, columns, sums);
      }
    }
  }
}

}  // namespace sdengine::nn::SDENGINE_ISA
