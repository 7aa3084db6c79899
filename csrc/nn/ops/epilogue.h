#pragma once

#include "nn/arguments.h"
#include "nn/simd/simd.h"

namespace sdengine::nn::SDENGINE_ISA {

inline Floats load_as(Type type, const char* row, std::ptrdiff_t column, int count) {
  if (type == Type::BFloat16) {
    return load_some(reinterpret_cast<const std::uint16_t*>(row) + column, count);
  }
  return load_some(reinterpret_cast<const float*>(row) + column, count);
}
inline void store_as(Type type, char* row, std::ptrdiff_t column, Floats a, int count) {
  if (type == Type::BFloat16) {
    store_some(reinterpret_cast<std::uint16_t*>(row) + column, a, count);
  } else {
    store_some(reinterpret_cast<float*>(row) + column, a, count);
  }
}

template <Activation A>
inline Floats activate(Floats x) {
  if constexpr (A == Activation::Silu) return silu(x);
  if constexpr (A == Activation::Gelu) return gelu(x);
  if constexpr (A == Activation::QuickGelu) return quick_gelu(x);
  if constexpr (A == Activation::Relu) return larger(zeros(), x);  // in this order NaN stays
  return x;
}

// Applies an epilogue to sums of one output row, from a column on, and stores the result.
class Finish {
 public:
  explicit Finish(const Epilogue& epilogue) : epilogue_(epilogue), pixels_(epilogue.out.pixels()) {}

  // Row pointers of one output row, looked up once for all its columns.
  struct Row {
    char* out;
    const char* residual;
    const char* per_image;
  };
  Row row_of(std::ptrdiff_t index, std::ptrdiff_t image) const {
    const Epilogue& e = epilogue_;
    return {e.out.row(index), e.residual != nullptr ? e.residual->row(index) : nullptr,
            e.per_image != nullptr ? e.per_image->row(image) : nullptr};
  }
  Row row(std::ptrdiff_t index) const {
    return row_of(index, epilogue_.per_image != nullptr ? index / pixels_ : 0);
  }

  template <Activation A>
  SDENGINE_INLINE void put(const Row& row, int column, Floats sums, int count) const {
    const Epilogue& e = epilogue_;
    if (e.bias != nullptr) sums = add(sums, load_some(e.bias + column, count));
    if (row.per_image != nullptr) {
      sums = add(sums, load_as(e.per_image->type, row.per_image, column, count));
    }
    sums = activate<A>(sums);
    if (row.residual != nullptr) {
      sums = add(sums, load_as(e.residual->type, row.residual, column, count));
    }
    store_as(e.out.type, row.out, column, sums, count);
  }

  // values and gates: columns of the same numbers; the bias holds 16 values, then 16 gates.
  SDENGINE_INLINE void put_gated(const Row& row, int column, Floats values, Floats gates,
                                 int count) const {
    const Epilogue& e = epilogue_;
    if (e.bias != nullptr) {
      const int at = column / 16 * 32 + column % 16;
      values = add(values, load(e.bias + at));
      gates = add(gates, load(e.bias + at + 16));
    }
    Floats result = mul(values, gelu(gates));
    if (row.residual != nullptr) {
      result = add(result, load_as(e.residual->type, row.residual, column, count));
    }
    store_as(e.out.type, row.out, column, result, count);
  }

 private:
  const Epilogue& epilogue_;
  const std::ptrdiff_t pixels_;
};

}  // namespace sdengine::nn::SDENGINE_ISA
