#pragma once

// Vectors of 16 floats. With __AVX512BF16__ and __AVX512VNNI__ pairs are multiplied by the
// processor's own instructions, without by two multiplications.

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace sdengine::nn::SDENGINE_ISA {

using Floats = __m512;
using Words = __m512i;
constexpr int kLanes = 16;
#ifdef __AVX512BF16__
constexpr bool kMultipliesBf16 = true;
#else
constexpr bool kMultipliesBf16 = false;
#endif
// Rows of a register tile of kTileVectors vectors; with the two of the panel it fills 32 registers.
constexpr int kTileRows = 12;
constexpr int kTileVectors = 2;

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats set(float value) { return _mm512_set1_ps(value); }
inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Floats a) { _mm512_storeu_ps(to, a); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats root(Floats a) { return _mm512_sqrt_ps(a); }
inline Floats magnitude(Floats a) { return _mm512_abs_ps(a); }
// Takes the sign of b.
inline Floats with_sign(Floats a, Floats b) {
  const __m512i sign = _mm512_and_si512(_mm512_castps_si512(b), _mm512_set1_epi32(INT32_MIN));
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a), sign));
}
inline Floats nearest(Floats a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
// a * 2^n for whole n.
inline Floats scale_by_power(Floats a, Floats n) { return _mm512_scalef_ps(a, n); }
inline float sum(Floats a) { return _mm512_reduce_add_ps(a); }
inline float largest(Floats a) { return _mm512_reduce_max_ps(a); }
// Keeps a where the lane's index is at least `first`, else b.
inline Floats from_lane(int first, Floats a, Floats b) {
  const unsigned mask = first <= 0 ? 0xffffu : first >= 16 ? 0u : 0xffffu << first;
  return _mm512_mask_blend_ps(static_cast<__mmask16>(mask), b, a);
}
inline bool any_larger(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }

inline Floats load(const std::uint16_t* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// The upper halves hold the rounded value; halves go to the even neighbour.
inline __m512i rounded_bf16(Floats a) {
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}

inline void store(std::uint16_t* to, Floats a) {
#ifdef __AVX512BF16__
  const __m256i halves = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a));
#else
  const __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_bf16(a), 16));
#endif
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}

// Writes kLanes pairs of integers in 16 bits: first[i], second[i].
inline void store_int16_pairs(std::uint32_t* to, Floats first, Floats second) {
  const __m512i low = _mm512_cvtps_epi32(first);
  const __m512i high = _mm512_slli_epi32(_mm512_cvtps_epi32(second), 16);
  _mm512_storeu_si512(to, _mm512_mask_blend_epi16(0xaaaaaaaau, low, high));
}

inline void store_int16(std::int16_t* to, Floats a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
}

inline void store_uint8(std::uint8_t* to, Floats a) {
  const __m512i whole = _mm512_max_epi32(_mm512_cvtps_epi32(a), _mm512_setzero_si512());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(whole));
}

inline Floats load_int32(const std::int32_t* from) {
  return _mm512_cvtepi32_ps(_mm512_loadu_si512(from));
}

// Exchanges rows and columns of a square of four-byte words.
inline void transpose(Words (&r)[kLanes]) {
  Words t[kLanes];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}
inline void store_words(void* to, Words a) { _mm512_storeu_si512(to, a); }
inline Floats as_floats(Words a) { return _mm512_castsi512_ps(a); }

// Accumulators of a register tile: each lane adds up products of 4 bytes of a with 4 of b.
struct DotFloat {
  using Sum = __m512;
  static Sum dot(Sum c, Words a, Words b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), c);
  }
};
struct DotBf16 {
  using Sum = __m512;
  static Sum dot(Sum c, Words a, Words b) {
#ifdef __AVX512BF16__
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
    const __m512i high = _mm512_set1_epi32(~0xffff);
    c = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)),
                        _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), c);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, high)),
                           _mm512_castsi512_ps(_mm512_and_si512(b, high)), c);
#endif
  }
};
struct DotInt16 {
  using Sum = __m512i;
  static Sum dot(Sum c, Words a, Words b) {
#ifdef __AVX512VNNI__
    // Not the intrinsic: GCC 12 copies the accumulator around each of them.
    asm("vpdpwssd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
#else
    return _mm512_add_epi32(c, _mm512_madd_epi16(a, b));
#endif
  }
};
// a: unsigned, b: signed.
struct DotInt8 {
  using Sum = __m512i;
  static Sum dot(Sum c, Words a, Words b) {
#ifdef __AVX512VNNI__
    asm("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
#else
    const __m512i low = _mm512_set1_epi16(0xff);
    const __m512i even =
        _mm512_madd_epi16(_mm512_and_si512(a, low), _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(a, 8), _mm512_srai_epi16(b, 8));
    return _mm512_add_epi32(c, _mm512_add_epi32(even, odd));
#endif
  }
};
inline __m512 zero_sum(__m512) { return _mm512_setzero_ps(); }
inline __m512i zero_sum(__m512i) { return _mm512_setzero_si512(); }
inline Words load_words(const void* from) { return _mm512_loadu_si512(from); }
inline Words broadcast(const void* from) {
  std::int32_t value;  // rows of bf16 may begin at any even address
  std::memcpy(&value, from, sizeof value);
  return _mm512_set1_epi32(value);
}
inline void load_sum(__m512& to, const void* from) { to = _mm512_loadu_ps(from); }
inline void load_sum(__m512i& to, const void* from) { to = _mm512_loadu_si512(from); }
inline void store_sum(void* to, __m512 a) { _mm512_storeu_ps(to, a); }
inline void store_sum(void* to, __m512i a) { _mm512_storeu_si512(to, a); }

}  // namespace sdengine::nn::SDENGINE_ISA
