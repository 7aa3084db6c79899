#pragma once

// Vectors of 8 floats, as pairs of the registers that every 64-bit ARM processor has.

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace sdengine::nn::SDENGINE_ISA {

struct Floats {
  float32x4_t low, high;
};
struct Words {
  int32x4_t low, high;
};
constexpr int kLanes = 8;
constexpr bool kMultipliesBf16 = false;
// 24 registers of sums, four of the panel and a broadcast, out of 32.
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;

inline Floats set(float value) { return {vdupq_n_f32(value), vdupq_n_f32(value)}; }
inline Floats zeros() { return set(0.0f); }
inline Floats load(const float* from) { return {vld1q_f32(from), vld1q_f32(from + 4)}; }
inline void store(float* to, Floats a) {
  vst1q_f32(to, a.low);
  vst1q_f32(to + 4, a.high);
}
inline Words as_words(Floats a) {
  return {vreinterpretq_s32_f32(a.low), vreinterpretq_s32_f32(a.high)};
}
inline Floats as_floats(Words a) {
  return {vreinterpretq_f32_s32(a.low), vreinterpretq_f32_s32(a.high)};
}

inline Floats add(Floats a, Floats b) {
  return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
}
inline Floats sub(Floats a, Floats b) {
  return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)};
}
inline Floats mul(Floats a, Floats b) {
  return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
}
inline Floats div(Floats a, Floats b) {
  return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)};
}
inline Floats fma(Floats a, Floats b, Floats c) {
  return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
inline Floats fnma(Floats a, Floats b, Floats c) {
  return {vfmsq_f32(c.low, a.low, b.low), vfmsq_f32(c.high, a.high, b.high)};
}
inline Floats select(uint32x4_t low, uint32x4_t high, Floats a, Floats b) {
  return {vbslq_f32(low, a.low, b.low), vbslq_f32(high, a.high, b.high)};
}
// The second where either is NaN, as the other sets have it; vmaxq_f32 would give NaN.
inline Floats larger(Floats a, Floats b) {
  return select(vcgtq_f32(a.low, b.low), vcgtq_f32(a.high, b.high), a, b);
}
inline Floats smaller(Floats a, Floats b) {
  return select(vcltq_f32(a.low, b.low), vcltq_f32(a.high, b.high), a, b);
}
inline Floats root(Floats a) { return {vsqrtq_f32(a.low), vsqrtq_f32(a.high)}; }
inline Floats magnitude(Floats a) { return {vabsq_f32(a.low), vabsq_f32(a.high)}; }
inline Floats with_sign(Floats a, Floats b) {
  const uint32x4_t sign = vdupq_n_u32(0x80000000u);
  return select(sign, sign, b, a);
}
inline Floats nearest(Floats a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }
inline Words whole(Floats a) { return {vcvtnq_s32_f32(a.low), vcvtnq_s32_f32(a.high)}; }
// For n of -126 to 127 and normal results.
inline Floats scale_by_power(Floats a, Floats n) {
  const Words power = whole(n), bits = as_words(a);
  return as_floats({vaddq_s32(bits.low, vshlq_n_s32(power.low, 23)),
                    vaddq_s32(bits.high, vshlq_n_s32(power.high, 23))});
}
inline float sum(Floats a) { return vaddvq_f32(vaddq_f32(a.low, a.high)); }
inline float largest(Floats a) { return vmaxvq_f32(vmaxq_f32(a.low, a.high)); }
inline Floats from_lane(int first, Floats a, Floats b) {
  static const std::int32_t index[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7};
  const int32x4_t begin = vdupq_n_s32(first);
  return select(vcgeq_s32(vld1q_s32(index), begin), vcgeq_s32(vld1q_s32(index + 4), begin), a, b);
}
inline bool any_larger(Floats a, Floats b) {
  return vmaxvq_u32(vorrq_u32(vcgtq_f32(a.low, b.low), vcgtq_f32(a.high, b.high))) != 0;
}

inline Floats load(const std::uint16_t* from) {
  const uint16x8_t bits = vld1q_u16(from);
  const uint32x4_t low = vshlq_n_u32(vmovl_u16(vget_low_u16(bits)), 16);
  const uint32x4_t high = vshlq_n_u32(vmovl_high_u16(bits), 16);
  return {vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high)};
}
inline uint16x4_t rounded_bf16(float32x4_t a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  return vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
}
inline void store(std::uint16_t* to, Floats a) {
  vst1q_u16(to, vcombine_u16(rounded_bf16(a.low), rounded_bf16(a.high)));
}
inline void store_int16_pairs(std::uint32_t* to, Floats first, Floats second) {
  // Each shifted into the upper half of its word, over the lower half of the other.
  const Words low = whole(first), high = whole(second);
  vst1q_u32(to, vsliq_n_u32(vreinterpretq_u32_s32(low.low), vreinterpretq_u32_s32(high.low), 16));
  vst1q_u32(to + 4,
            vsliq_n_u32(vreinterpretq_u32_s32(low.high), vreinterpretq_u32_s32(high.high), 16));
}
inline int16x8_t narrow(Floats a) {
  const Words kept = whole(a);
  return vcombine_s16(vqmovn_s32(kept.low), vqmovn_s32(kept.high));
}
inline void store_int16(std::int16_t* to, Floats a) { vst1q_s16(to, narrow(a)); }
inline void store_uint8(std::uint8_t* to, Floats a) { vst1_u8(to, vqmovun_s16(narrow(a))); }
inline Floats load_int32(const std::int32_t* from) {
  return {vcvtq_f32_s32(vld1q_s32(from)), vcvtq_f32_s32(vld1q_s32(from + 4))};
}

inline void transpose(int32x4_t& a, int32x4_t& b, int32x4_t& c, int32x4_t& d) {
  const int64x2_t ab_even = vreinterpretq_s64_s32(vtrn1q_s32(a, b));
  const int64x2_t ab_odd = vreinterpretq_s64_s32(vtrn2q_s32(a, b));
  const int64x2_t cd_even = vreinterpretq_s64_s32(vtrn1q_s32(c, d));
  const int64x2_t cd_odd = vreinterpretq_s64_s32(vtrn2q_s32(c, d));
  a = vreinterpretq_s32_s64(vtrn1q_s64(ab_even, cd_even));
  b = vreinterpretq_s32_s64(vtrn1q_s64(ab_odd, cd_odd));
  c = vreinterpretq_s32_s64(vtrn2q_s64(ab_even, cd_even));
  d = vreinterpretq_s32_s64(vtrn2q_s64(ab_odd, cd_odd));
}
// Exchanges rows and columns of a square of four-byte words.
inline void transpose(Words (&r)[kLanes]) {
  transpose(r[0].low, r[1].low, r[2].low, r[3].low);
  transpose(r[0].high, r[1].high, r[2].high, r[3].high);
  transpose(r[4].low, r[5].low, r[6].low, r[7].low);
  transpose(r[4].high, r[5].high, r[6].high, r[7].high);
  for (int i = 0; i < 4; ++i) {
    const int32x4_t kept = r[i].high;
    r[i].high = r[i + 4].low;
    r[i + 4].low = kept;
  }
}

struct DotFloat {
  using Sum = Floats;
  static Sum dot(Sum c, Words a, Words b) { return fma(as_floats(a), as_floats(b), c); }
};
struct DotBf16 {
  using Sum = Floats;
  static Floats first(Words a) {
    return as_floats({vshlq_n_s32(a.low, 16), vshlq_n_s32(a.high, 16)});
  }
  static Floats second(Words a) {
    const int32x4_t upper = vdupq_n_s32(~0xffff);
    return as_floats({vandq_s32(a.low, upper), vandq_s32(a.high, upper)});
  }
  static Sum dot(Sum c, Words a, Words b) {
    return fma(second(a), second(b), fma(first(a), first(b), c));
  }
};
inline Words add_products(Words c, int16x8_t a, int16x8_t b) {
  return {vmlal_s16(c.low, vget_low_s16(a), vget_low_s16(b)), vmlal_high_s16(c.high, a, b)};
}
struct DotInt16 {
  using Sum = Words;
  // The first and the second halves of all words: done once for all rows, so that products need
  // no additions of neighbours.
  static int16x8_t first(Words a) {
    return vuzp1q_s16(vreinterpretq_s16_s32(a.low), vreinterpretq_s16_s32(a.high));
  }
  static int16x8_t second(Words a) {
    return vuzp2q_s16(vreinterpretq_s16_s32(a.low), vreinterpretq_s16_s32(a.high));
  }
  static Sum dot(Sum c, Words a, Words b) {
    return add_products(add_products(c, first(a), first(b)), second(a), second(b));
  }
};
struct DotInt8 {
  using Sum = Words;
  static Words add_bytes(Words c, int16x8_t a, int16x8_t b) {
    const uint16x8_t bits = vreinterpretq_u16_s16(a);
    c = add_products(c, vandq_s16(a, vdupq_n_s16(0xff)), vshrq_n_s16(vshlq_n_s16(b, 8), 8));
    return add_products(c, vreinterpretq_s16_u16(vshrq_n_u16(bits, 8)), vshrq_n_s16(b, 8));
  }
  static Sum dot(Sum c, Words a, Words b) {
    c = add_bytes(c, DotInt16::first(a), DotInt16::first(b));
    return add_bytes(c, DotInt16::second(a), DotInt16::second(b));
  }
};
inline Floats zero_sum(const Floats&) { return zeros(); }
inline Words zero_sum(const Words&) { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
inline Words load_words(const void* from) {
  const auto* bytes = static_cast<const std::uint8_t*>(from);
  return {vreinterpretq_s32_u8(vld1q_u8(bytes)), vreinterpretq_s32_u8(vld1q_u8(bytes + 16))};
}
inline void store_words(void* to, Words a) {
  auto* bytes = static_cast<std::uint8_t*>(to);
  vst1q_u8(bytes, vreinterpretq_u8_s32(a.low));
  vst1q_u8(bytes + 16, vreinterpretq_u8_s32(a.high));
}
inline Words broadcast(const void* from) {
  std::int32_t value;  // rows of bf16 may begin at any even address
  std::memcpy(&value, from, sizeof value);
  return {vdupq_n_s32(value), vdupq_n_s32(value)};
}
inline void load_sum(Floats& to, const void* from) { to = as_floats(load_words(from)); }
inline void load_sum(Words& to, const void* from) { to = load_words(from); }
inline void store_sum(void* to, const Floats& a) { store_words(to, as_words(a)); }
inline void store_sum(void* to, const Words& a) { store_words(to, a); }

}  // namespace sdengine::nn::SDENGINE_ISA
