#pragma once

// Activations that no product takes along: hypernetworks have them, behind layers of their own.
// What is not finite stays so, or becomes NaN.

#include "nn/ops/epilogue.h"

namespace sdengine::nn::SDENGINE_ISA {

// Where x is not finite NaN, else y: exp, whose argument is kept in its range, would lose it.
inline Floats kept(Floats x, Floats y) { return add(y, sub(x, x)); }
inline Floats within(Floats low, Floats x, Floats high) { return smaller(high, larger(low, x)); }
inline Floats above_zero(Floats x) { return larger(zeros(), x); }
inline Floats below_zero(Floats x) { return smaller(zeros(), x); }

inline Floats leaky(Floats x, float slope) { return larger(mul(x, set(slope)), x); }
inline Floats leaky_relu(Floats x) { return leaky(x, 0.01f); }
// Without training its slope is the mean of those that it draws from.
inline Floats rrelu(Floats x) { return leaky(x, (1.0f / 8 + 1.0f / 3) / 2); }
inline Floats relu6(Floats x) { return within(zeros(), x, set(6.0f)); }
inline Floats elu_below(Floats x) { return sub(exp(below_zero(x)), set(1.0f)); }
inline Floats elu(Floats x) { return kept(x, add(above_zero(x), elu_below(x))); }
inline Floats selu(Floats x) {
  const Floats below = mul(set(1.67326324f), elu_below(x));
  return kept(x, mul(set(1.05070099f), add(above_zero(x), below)));
}
inline Floats hardsigmoid(Floats x) {
  return within(zeros(), fma(x, set(1.0f / 6), set(0.5f)), set(1.0f));
}
inline Floats hardswish(Floats x) { return mul(x, hardsigmoid(x)); }
inline Floats hardtanh(Floats x) { return within(set(-1.0f), x, set(1.0f)); }
inline Floats tanh(Floats x) {
  const Floats t = exp(mul(magnitude(x), set(-2.0f)));
  return kept(x, with_sign(div(sub(set(1.0f), t), add(set(1.0f), t)), x));
}
inline Floats tanhshrink(Floats x) { return sub(x, tanh(x)); }
inline Floats lone_sigmoid(Floats x) { return kept(x, sigmoid(x)); }
// ln(1 + t) for t of 0 to 1, as 2 artanh(t / (2 + t)) by its series.
inline Floats log1p(Floats t) {
  const Floats z = div(t, add(t, set(2.0f))), square = mul(z, z);
  Floats p = set(2.0f / 15);
  p = fma(p, square, set(2.0f / 13));
  p = fma(p, square, set(2.0f / 11));
  p = fma(p, square, set(2.0f / 9));
  p = fma(p, square, set(2.0f / 7));
  p = fma(p, square, set(2.0f / 5));
  p = fma(p, square, set(2.0f / 3));
  p = fma(p, square, set(2.0f));
  return mul(p, z);
}
inline Floats softplus(Floats x) {
  return kept(x, add(above_zero(x), log1p(exp(sub(zeros(), magnitude(x))))));
}
inline Floats logsigmoid(Floats x) { return sub(zeros(), softplus(sub(zeros(), x))); }
// x tanh(ln(1 + e^x)) without the logarithm; beyond 20 it is x.
inline Floats mish(Floats x) {
  const Floats e = exp(smaller(set(20.0f), x));
  const Floats n = mul(e, add(e, set(2.0f)));
  return mul(x, div(n, add(n, set(2.0f))));
}
inline Floats softsign(Floats x) { return div(x, add(set(1.0f), magnitude(x))); }
inline Floats beyond_half(Floats x) { return sub(magnitude(x), set(0.5f)); }
inline Floats softshrink(Floats x) { return with_sign(above_zero(beyond_half(x)), x); }
// The smallest step beyond a half makes it a whole 1.
inline Floats hardshrink(Floats x) {
  return mul(x, within(zeros(), mul(beyond_half(x), set(1e30f)), set(1.0f)));
}

template <Activation A>
inline Floats activate_alone(Floats x) {
#define SDENGINE_ALONE(Name, word, function) \
  if constexpr (A == Activation::Name) return function(x);
  SDENGINE_LONE_ACTIVATIONS(SDENGINE_ALONE)
#undef SDENGINE_ALONE
  return activate<A>(x);
}

}  // namespace sdengine::nn::SDENGINE_ISA
