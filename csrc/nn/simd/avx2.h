#pragma once

// Vectors of 8 floats, with AVX2 and FMA.

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace sdengine::nn::SDENGINE_ISA {

using Floats = __m256;
using Words = __m256i;
constexpr int kLanes = 8;
constexpr bool kMultipliesBf16 = false;
// 12 accumulators, two vectors of the panel and a broadcast: 16 registers.
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;

inline Floats zeros() { return _mm256_setzero_ps(); }
inline Floats set(float value) { return _mm256_set1_ps(value); }
inline Floats load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, Floats a) { _mm256_storeu_ps(to, a); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats root(Floats a) { return _mm256_sqrt_ps(a); }
inline Floats magnitude(Floats a) { return _mm256_andnot_ps(set(-0.0f), a); }
inline Floats with_sign(Floats a, Floats b) {
  return _mm256_or_ps(a, _mm256_and_ps(b, set(-0.0f)));
}
inline Floats nearest(Floats a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// For n of -126 to 127 and normal results.
inline Floats scale_by_power(Floats a, Floats n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
}
inline float sum(Floats a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
inline float largest(Floats a) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}
inline Floats from_lane(int first, Floats a, Floats b) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i kept = _mm256_cmpgt_epi32(index, _mm256_set1_epi32(first - 1));
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(kept));
}
inline bool any_larger(Floats a, Floats b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
}

inline Floats load(const std::uint16_t* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline __m256i rounded_bf16(Floats a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}

inline void store(std::uint16_t* to, Floats a) {
  const __m256i words = _mm256_srli_epi32(rounded_bf16(a), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

inline void store_int16_pairs(std::uint32_t* to, Floats first, Floats second) {
  const __m256i low = _mm256_cvtps_epi32(first);
  const __m256i high = _mm256_slli_epi32(_mm256_cvtps_epi32(second), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_blend_epi16(low, high, 0xaa));
}

inline void store_int16(std::int16_t* to, Floats a) {
  const __m256i whole = _mm256_cvtps_epi32(a);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole, whole), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

inline void store_uint8(std::uint8_t* to, Floats a) {
  const __m256i whole = _mm256_cvtps_epi32(a);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole, whole), 0x08);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm_setzero_si128());
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bytes);
}

inline Floats load_int32(const std::int32_t* from) {
  return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// Exchanges rows and columns of a square of four-byte words.
inline void transpose(Words (&r)[kLanes]) {
  Words t[kLanes];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}
inline void store_words(void* to, Words a) { _mm256_storeu_si256(static_cast<__m256i*>(to), a); }
inline Floats as_floats(Words a) { return _mm256_castsi256_ps(a); }

struct DotFloat {
  using Sum = __m256;
  static Sum dot(Sum c, Words a, Words b) {
    return _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), c);
  }
};
struct DotBf16 {
  using Sum = __m256;
  static Sum dot(Sum c, Words a, Words b) {
    const __m256i high = _mm256_set1_epi32(~0xffff);
    c = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
                        _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)), c);
    return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(a, high)),
                           _mm256_castsi256_ps(_mm256_and_si256(b, high)), c);
  }
};
struct DotInt16 {
  using Sum = __m256i;
  static Sum dot(Sum c, Words a, Words b) { return _mm256_add_epi32(c, _mm256_madd_epi16(a, b)); }
};
struct DotInt8 {
  using Sum = __m256i;
  static Sum dot(Sum c, Words a, Words b) {
    const __m256i low = _mm256_set1_epi16(0xff);
    const __m256i even =
        _mm256_madd_epi16(_mm256_and_si256(a, low), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return _mm256_add_epi32(c, _mm256_add_epi32(even, odd));
  }
};
inline __m256 zero_sum(__m256) { return _mm256_setzero_ps(); }
inline __m256i zero_sum(__m256i) { return _mm256_setzero_si256(); }
inline Words load_words(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline Words broadcast(const void* from) {
  std::int32_t value;  // rows of bf16 may begin at any even address
  std::memcpy(&value, from, sizeof value);
  return _mm256_set1_epi32(value);
}
inline void load_sum(__m256& to, const void* from) {
  to = _mm256_loadu_ps(static_cast<const float*>(from));
}
inline void load_sum(__m256i& to, const void* from) { to = load_words(from); }
inline void store_sum(void* to, __m256 a) { _mm256_storeu_ps(static_cast<float*>(to), a); }
inline void store_sum(void* to, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(to), a); }

}  // namespace sdengine::nn::SDENGINE_ISA
