#pragma once

// The vectors of the instruction set that this file is compiled for. The build compiles each
// operation once per set, with SDENGINE_ISA as its name, and the processor's is chosen at run time.
// What is included here must not leave functions of the standard library in the object file: the
// linker would keep one copy of each for all sets.

#ifndef SDENGINE_ISA
#error "SDENGINE_ISA names the instruction set"
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)
#include "nn/simd/avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "nn/simd/avx2.h"
#elif defined(SDENGINE_NEON)
#include "nn/simd/neon.h"
#else
#include "nn/simd/portable.h"
#endif

#define SDENGINE_INLINE __attribute__((always_inline)) inline
#define SDENGINE_UNROLL _Pragma("GCC unroll 64")

namespace sdengine::nn::SDENGINE_ISA {

inline int least(int a, int b) { return a < b ? a : b; }

// Fewer than kLanes values; the other lanes are zero.
template <typename T>
inline Floats load_some(const T* from, int count) {
  if (count >= kLanes) return load(from);
  T whole[kLanes] = {};
  for (int i = 0; i < count; ++i) whole[i] = from[i];
  return load(whole);
}
template <typename T>
inline void store_some(T* to, Floats a, int count) {
  if (count >= kLanes) return store(to, a);
  T whole[kLanes];
  store(whole, a);
  for (int i = 0; i < count; ++i) to[i] = whole[i];
}

// 2^x for x of -126 to 127; relative error 1.2e-7.
inline Floats exp2(Floats x) {
  const Floats n = nearest(x);
  const Floats f = sub(x, n);
  // Taylor's terms of 2^f; the seventh is below 1e-7 for |f| <= 1/2.
  Floats p = set(1.5403530e-4f);
  p = fma(p, f, set(1.3333558e-3f));
  p = fma(p, f, set(9.6181291e-3f));
  p = fma(p, f, set(5.5504109e-2f));
  p = fma(p, f, set(2.4022651e-1f));
  p = fma(p, f, set(6.9314718e-1f));
  p = fma(p, f, set(1.0f));
  return scale_by_power(p, n);
}
// The same to 16 bits, with NaN kept: relative error 4e-5.
inline Floats exp2_short(Floats x) {
  const Floats n = nearest(x);
  const Floats f = sub(x, n);
  Floats p = set(9.6181291e-3f);
  p = fma(p, f, set(5.5504109e-2f));
  p = fma(p, f, set(2.4022651e-1f));
  p = fma(p, f, set(6.9314718e-1f));
  p = fma(p, f, set(1.0f));
  return scale_by_power(p, n);
}
inline Floats exp(Floats x) {
  const Floats t = mul(x, set(1.44269504f));
  return exp2(smaller(larger(t, set(-126.0f)), set(126.0f)));
}
inline Floats sigmoid(Floats x) { return div(set(1.0f), add(set(1.0f), exp(sub(zeros(), x)))); }
inline Floats silu(Floats x) { return mul(x, sigmoid(x)); }
inline Floats quick_gelu(Floats x) { return mul(x, sigmoid(mul(x, set(1.702f)))); }
// Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; error below 1.5e-7.
inline Floats erf(Floats x) {
  const Floats a = magnitude(x);
  const Floats t = div(set(1.0f), fma(a, set(0.3275911f), set(1.0f)));
  Floats p = set(1.061405429f);
  p = fma(p, t, set(-1.453152027f));
  p = fma(p, t, set(1.421413741f));
  p = fma(p, t, set(-0.284496736f));
  p = fma(p, t, set(0.254829592f));
  return with_sign(fnma(mul(p, t), exp(sub(zeros(), mul(a, a))), set(1.0f)), x);
}
inline Floats gelu(Floats x) {
  return mul(mul(x, set(0.5f)), add(set(1.0f), erf(mul(x, set(0.70710678f)))));
}

}  // namespace sdengine::nn::SDENGINE_ISA
