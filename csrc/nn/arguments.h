#pragma once

// What each operation of a network takes. Every pointer and size was checked when the network was
// put together (network.cpp); the operations themselves check nothing.

#include <array>
#include <cstddef>
#include <cstdint>

#include "nn/feature_map.h"
#include "nn/panels.h"

namespace sdengine::nn {

// Those of the operation `activation` alone: name, word in a record, function (lone_activations.h).
#define SDENGINE_LONE_ACTIVATIONS(X)         \
  X(LeakyRelu, "leaky_relu", leaky_relu)     \
  X(RRelu, "rrelu", rrelu)                   \
  X(Relu6, "relu6", relu6)                   \
  X(Elu, "elu", elu)                         \
  X(Selu, "selu", selu)                      \
  X(HardSigmoid, "hardsigmoid", hardsigmoid) \
  X(HardSwish, "hardswish", hardswish)       \
  X(HardTanh, "hardtanh", hardtanh)          \
  X(Tanh, "tanh", tanh)                      \
  X(TanhShrink, "tanhshrink", tanhshrink)    \
  X(Sigmoid, "sigmoid", lone_sigmoid)        \
  X(SoftPlus, "softplus", softplus)          \
  X(LogSigmoid, "logsigmoid", logsigmoid)    \
  X(Mish, "mish", mish)                      \
  X(SoftSign, "softsign", softsign)          \
  X(SoftShrink, "softshrink", softshrink)    \
  X(HardShrink, "hardshrink", hardshrink)

#define SDENGINE_NAME(Name, word, function) Name,
enum class Activation : std::uint8_t {
  None,
  Silu,
  Gelu,
  QuickGelu,
  Geglu,
  Relu,
  SDENGINE_LONE_ACTIVATIONS(SDENGINE_NAME)
};
#undef SDENGINE_NAME

// What happens to a sum before it is stored: + bias, + the image's row, activation, + residual.
struct Epilogue {
  const float* bias = nullptr;     // [n]
  const Map* per_image = nullptr;  // [images,1,1,n]
  const Map* residual = nullptr;   // shaped as out
  Activation activation = Activation::None;
  Map out;
};

// Along which axes a convolution reads from a map's other end in the place of zeros outside.
struct Wraps {
  bool down = false, across = false;
};

// Where a convolution reads along an axis, given that a place may lie outside; -1 for zeros.
inline int place_read(int at, int size, bool wraps) {
  if (at >= 0 && at < size) return at;
  if (!wraps) return -1;
  at %= size;
  return at < 0 ? at + size : at;
}

struct LinearArguments {
  Map x;
  Panels weight;
  Epilogue epilogue;
};

// A convolution by gathering the pixels under the kernel. Its k is [ky][kx][channel].
struct ConvArguments {
  Map x;
  Panels weight;
  Epilogue epilogue;
  int kernel = 3, stride = 1, padding = 1;
  bool upsample = false;  // x is read as if every pixel were repeated twice in both directions
  Wraps wraps;
};

// A 3x3 convolution of stride 1 and padding 1 as F(tile x tile, 3x3).
// Source: "Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray 2016).
struct WinogradArguments {
  Map x;
  const char* weight = nullptr;   // [out_channels/32][(tile+2)^2][words][32] of four bytes
  const float* scales = nullptr;  // Int16: [out_channels/32][(tile+2)^2][32]
  Kind kind = Kind::Float32;
  int out_channels = 0;
  int tile = 4;
  Epilogue epilogue;
  bool upsample = false;
  Wraps wraps;
};

struct GroupNormArguments {
  Map x, out;
  const float *weight = nullptr, *bias = nullptr;
  int groups = 1;
  float epsilon = 1e-5f;
  bool silu = false;

  static auto maps() { return std::array{&GroupNormArguments::x, &GroupNormArguments::out}; }
};

// GroupNorm's second half, where the statistics are known: out = x * scale + shift, of each
// channel.
struct AffineArguments {
  Map x, factors, out;  // factors: [images,1,1,2*channels] fp32, scales and then shifts
  bool silu = false;

  static auto maps() {
    return std::array{&AffineArguments::x, &AffineArguments::factors, &AffineArguments::out};
  }
};

struct LayerNormArguments {
  Map x, out;
  const float *weight = nullptr, *bias = nullptr;
  float epsilon = 1e-5f;

  static auto maps() { return std::array{&LayerNormArguments::x, &LayerNormArguments::out}; }
};

// q, k, v and out hold heads side by side in their channels.
struct AttentionArguments {
  Map q, k, v, out;
  int heads = 1;
  float scale = 1.0f;
  bool causal = false;

  static auto maps() {
    return std::array{&AttentionArguments::q, &AttentionArguments::k, &AttentionArguments::v,
                      &AttentionArguments::out};
  }
};

// out = a + scale * b
struct AddArguments {
  Map a, b, out;  // b may be one image for all, or one row for each image
  float scale = 1.0f;

  static auto maps() { return std::array{&AddArguments::a, &AddArguments::b, &AddArguments::out}; }
};

struct ActivationArguments {
  Map x, out;
  Activation activation = Activation::Silu;

  static auto maps() { return std::array{&ActivationArguments::x, &ActivationArguments::out}; }
};

// out[n] = [cos(t[n] * frequencies), sin(t[n] * frequencies)]
struct SinusoidArguments {
  Map x;  // [images,1,1,1]; or several values a row, whose results follow each other
  const float* frequencies = nullptr;
  int channels = 0;
  Map out;

  static auto maps() { return std::array{&SinusoidArguments::x, &SinusoidArguments::out}; }
};

// out[n] = x[n, index[n]]; indices outside are taken as the nearest inside.
struct SelectArguments {
  Map x, index, out;

  static auto maps() {
    return std::array{&SelectArguments::x, &SelectArguments::index, &SelectArguments::out};
  }
};

// Copies [n,h,w,c] between any strides (in values) and types.
struct CopyArguments {
  const char* from = nullptr;
  char* to = nullptr;
  Type from_type = Type::Float32, to_type = Type::Float32;
  int sizes[4] = {1, 1, 1, 1};
  std::ptrdiff_t from_strides[4] = {0, 0, 0, 0}, to_strides[4] = {0, 0, 0, 0};
};

// Every operation that is compiled for each instruction set, and its arguments: from this list
// follow the table of kernels (operation_table.h), their declarations (ops/operations.h), the
// reader's (plan_reader.h), and what a network does with a record of this kind (network.cpp).
#define SDENGINE_OPERATIONS(X)      \
  X(linear, LinearArguments)        \
  X(conv, ConvArguments)            \
  X(winograd, WinogradArguments)    \
  X(group_norm, GroupNormArguments) \
  X(affine, AffineArguments)        \
  X(layer_norm, LayerNormArguments) \
  X(attention, AttentionArguments)  \
  X(add, AddArguments)              \
  X(activation, ActivationArguments)

}  // namespace sdengine::nn
