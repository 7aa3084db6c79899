#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "cuda/launch.h"

// The number types of networks, read and written as fp32.
namespace sdengine::cuda {

SDENGINE_BODY inline float to_float(float value) { return value; }
SDENGINE_BODY inline float to_float(__half value) { return __half2float(value); }
SDENGINE_BODY inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
SDENGINE_BODY T from_float(float value);
template <>
SDENGINE_BODY inline float from_float<float>(float value) {
  return value;
}
template <>
SDENGINE_BODY inline __half from_float<__half>(float value) {
  return __float2half(value);
}
template <>
SDENGINE_BODY inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16(value);
}

// Tests bits, since host compilers may take every value for finite.
SDENGINE_BODY inline bool is_finite(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (bits & 0x7f800000u) != 0x7f800000u;
}

}  // namespace sdengine::cuda
