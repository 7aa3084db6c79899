#pragma once

// Vectors of 8 floats in plain C++: what every processor runs, and what the others are tested with.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace sdengine::nn::SDENGINE_ISA {

constexpr int kLanes = 8;
constexpr bool kMultipliesBf16 = false;
constexpr int kTileRows = 2;
constexpr int kTileVectors = 2;

struct Floats {
  float lane[kLanes];
};
struct Words {
  std::uint32_t lane[kLanes];
};

template <typename Function>
inline Floats each(Function function) {
  Floats out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = function(i);
  return out;
}
inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline Floats set(float value) {
  return each([&](int) { return value; });
}
inline Floats zeros() { return set(0.0f); }
inline Floats load(const float* from) {
  return each([&](int i) { return from[i]; });
}
inline void store(float* to, Floats a) { std::memcpy(to, a.lane, sizeof a.lane); }
inline Floats add(Floats a, Floats b) {
  return each([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Floats sub(Floats a, Floats b) {
  return each([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Floats mul(Floats a, Floats b) {
  return each([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Floats div(Floats a, Floats b) {
  return each([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline Floats fma(Floats a, Floats b, Floats c) { return add(mul(a, b), c); }
inline Floats fnma(Floats a, Floats b, Floats c) { return sub(c, mul(a, b)); }
inline Floats larger(Floats a, Floats b) {
  return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Floats smaller(Floats a, Floats b) {
  return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Floats root(Floats a) {
  return each([&](int i) { return std::sqrt(a.lane[i]); });
}
inline Floats magnitude(Floats a) {
  return each([&](int i) { return float_of(bits_of(a.lane[i]) & 0x7fffffffu); });
}
inline Floats with_sign(Floats a, Floats b) {
  return each(
      [&](int i) { return float_of(bits_of(a.lane[i]) | (bits_of(b.lane[i]) & 0x80000000u)); });
}
// For values below 2^22: adding 1.5 * 2^23 leaves no bits behind the point.
inline Floats nearest(Floats a) {
  return each([&](int i) {
    const float shifted = a.lane[i] + 12582912.0f;
    return shifted - 12582912.0f;
  });
}
inline Floats scale_by_power(Floats a, Floats n) {
  return each([&](int i) {
    const auto exponent = static_cast<std::uint32_t>(static_cast<std::int32_t>(n.lane[i])) << 23;
    return float_of(bits_of(a.lane[i]) + exponent);
  });
}
inline float sum(Floats a) {
  float total = 0.0f;
  for (float value : a.lane) total += value;
  return total;
}
inline float largest(Floats a) {
  float found = a.lane[0];
  for (float value : a.lane) found = value > found ? value : found;
  return found;
}
inline Floats from_lane(int first, Floats a, Floats b) {
  return each([&](int i) { return i >= first ? a.lane[i] : b.lane[i]; });
}
inline bool any_larger(Floats a, Floats b) {
  bool found = false;
  for (int i = 0; i < kLanes; ++i) found |= a.lane[i] > b.lane[i];
  return found;
}

inline Floats load(const std::uint16_t* from) {
  return each([&](int i) { return float_of(static_cast<std::uint32_t>(from[i]) << 16); });
}
inline std::uint32_t rounded_bf16(float value) {
  const std::uint32_t bits = bits_of(value);
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}
inline void store(std::uint16_t* to, Floats a) {
  for (int i = 0; i < kLanes; ++i) {
    to[i] = static_cast<std::uint16_t>(rounded_bf16(a.lane[i]) >> 16);
  }
}
inline std::int32_t whole(float value) { return static_cast<std::int32_t>(std::lrintf(value)); }
inline void store_int16_pairs(std::uint32_t* to, Floats first, Floats second) {
  for (int i = 0; i < kLanes; ++i) {
    to[i] = (static_cast<std::uint32_t>(whole(first.lane[i])) & 0xffffu) |
            static_cast<std::uint32_t>(whole(second.lane[i])) << 16;
  }
}
inline void store_int16(std::int16_t* to, Floats a) {
  const Floats kept = smaller(larger(a, set(-32768.0f)), set(32767.0f));
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<std::int16_t>(whole(kept.lane[i]));
}
inline void store_uint8(std::uint8_t* to, Floats a) {
  const Floats kept = smaller(larger(a, zeros()), set(255.0f));
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<std::uint8_t>(whole(kept.lane[i]));
}
inline Floats load_int32(const std::int32_t* from) {
  return each([&](int i) { return static_cast<float>(from[i]); });
}

// Exchanges rows and columns of a square of four-byte words.
inline void transpose(Words (&r)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const std::uint32_t kept = r[i].lane[j];
      r[i].lane[j] = r[j].lane[i];
      r[j].lane[i] = kept;
    }
  }
}
inline void store_words(void* to, const Words& a) { std::memcpy(to, a.lane, sizeof a.lane); }
inline Floats as_floats(const Words& a) {
  return each([&](int i) { return float_of(a.lane[i]); });
}

struct DotFloat {
  using Sum = Floats;
  static Sum dot(Sum c, Words a, Words b) {
    return each([&](int i) { return c.lane[i] + float_of(a.lane[i]) * float_of(b.lane[i]); });
  }
};
struct DotBf16 {
  using Sum = Floats;
  static Sum dot(Sum c, Words a, Words b) {
    return each([&](int i) {
      const float low = c.lane[i] + float_of(a.lane[i] << 16) * float_of(b.lane[i] << 16);
      return low + float_of(a.lane[i] & 0xffff0000u) * float_of(b.lane[i] & 0xffff0000u);
    });
  }
};
// Sums wrap around, as those of the processors' instructions do.
struct DotInt16 {
  using Sum = Words;
  static Sum dot(Sum c, Words a, Words b) {
    for (int i = 0; i < kLanes; ++i) {
      for (int shift = 0; shift < 32; shift += 16) {
        const std::int32_t product = static_cast<std::int16_t>(a.lane[i] >> shift) *
                                     static_cast<std::int16_t>(b.lane[i] >> shift);
        c.lane[i] += static_cast<std::uint32_t>(product);
      }
    }
    return c;
  }
};
struct DotInt8 {
  using Sum = Words;
  static Sum dot(Sum c, Words a, Words b) {
    for (int i = 0; i < kLanes; ++i) {
      for (int shift = 0; shift < 32; shift += 8) {
        const std::int32_t product = static_cast<std::uint8_t>(a.lane[i] >> shift) *
                                     static_cast<std::int8_t>(b.lane[i] >> shift);
        c.lane[i] += static_cast<std::uint32_t>(product);
      }
    }
    return c;
  }
};
inline Floats zero_sum(const Floats&) { return zeros(); }
inline Words zero_sum(const Words&) { return Words{}; }
inline Words load_words(const void* from) {
  Words out;
  std::memcpy(out.lane, from, sizeof out.lane);
  return out;
}
inline Words broadcast(const void* from) {
  std::uint32_t value;
  std::memcpy(&value, from, sizeof value);
  Words out;
  for (std::uint32_t& lane : out.lane) lane = value;
  return out;
}
inline void load_sum(Floats& to, const void* from) { std::memcpy(to.lane, from, sizeof to.lane); }
inline void load_sum(Words& to, const void* from) { std::memcpy(to.lane, from, sizeof to.lane); }
inline void store_sum(void* to, const Floats& a) { std::memcpy(to, a.lane, sizeof a.lane); }
inline void store_sum(void* to, const Words& a) { std::memcpy(to, a.lane, sizeof a.lane); }

}  // namespace sdengine::nn::SDENGINE_ISA
