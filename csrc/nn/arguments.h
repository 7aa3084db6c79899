#pragma once

// What the operations of a network take. Every pointer and size was checked when the network was
// put together (network.cpp); the operations themselves check nothing.

#include <array>
#include <cstddef>
#include <cstdint>

namespace sdengine::nn {

class ThreadPool;

enum class Type : std::uint8_t { Float32, BFloat16, Int64 };
constexpr std::size_t size_of(Type type) {
  return type == Type::Int64 ? 8 : type == Type::Float32 ? 4 : 2;
}

// What the four bytes of a lane of a packed panel are.
enum class Kind : std::uint8_t { Float32, BFloat16, Int16, Int8 };
constexpr int kPanel = 32;  // columns
// Values of the inner dimension that share a lane.
constexpr int values_per_lane(Kind kind) {
  return kind == Kind::Float32 ? 1 : kind == Kind::Int8 ? 4 : 2;
}
constexpr int lanes_for(Kind kind, int inner) {
  return (inner + values_per_lane(kind) - 1) / values_per_lane(kind);
}

enum class Activation : std::uint8_t { None, Silu, Gelu, QuickGelu, Geglu };

// A feature map in NHWC order, or tokens as one row of pixels. Pixels follow each other `stride`
// values apart, so that a map can be a slice of another's channels.
struct Map {
  char* data = nullptr;
  Type type = Type::Float32;
  int images = 0, height = 0, width = 0, channels = 0;
  std::ptrdiff_t stride = 0;

  std::ptrdiff_t pixels() const { return std::ptrdiff_t{height} * width; }
  std::ptrdiff_t rows() const { return images * pixels(); }
  char* row(std::ptrdiff_t index) const { return data + index * stride * size_of(type); }
};

// A matrix [columns, inner] as panels [columns/32][lanes][32] of four bytes, zero beyond its edges.
struct Panels {
  const char* data = nullptr;
  Kind kind = Kind::Float32;
  int columns = 0, inner = 0;
  // Of whole numbers: what a value of each column counts. Int8 only: the sum of its values.
  const float* column_scales = nullptr;
  const std::int32_t* column_sums = nullptr;

  int panels() const { return (columns + kPanel - 1) / kPanel; }
  int lanes() const { return lanes_for(kind, inner); }
  std::size_t panel_bytes() const { return std::size_t(lanes()) * kPanel * 4; }
};

// What happens to a sum before it is stored: + bias, + the image's row, activation, + residual.
struct Epilogue {
  const float* bias = nullptr;     // [columns]
  const Map* per_image = nullptr;  // [images,1,1,columns]
  const Map* residual = nullptr;   // shaped as out
  Activation activation = Activation::None;
  Map out;
};

// Memory that operations use while they run.
struct Scratch {
  char* shared = nullptr;
  char* own = nullptr;  // of the first thread
  std::size_t own_bytes = 0;
  char* of(int thread) const { return own + thread * own_bytes; }
};

struct LinearArguments {
  Map x;
  Panels weight;
  Epilogue epilogue;
};

// A convolution by gathering the pixels under the kernel. Its inner dimension is [ky][kx][channel].
struct ConvArguments {
  Map x;
  Panels weight;
  Epilogue epilogue;
  int kernel = 3, step = 1, pad = 1;
  bool upsample = false;  // x is read as if every pixel were repeated twice in both directions
};

// A 3x3 convolution of step 1 and padding 1 as F(tile x tile, 3x3).
// Source: "Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray 2016).
struct WinogradArguments {
  Map x;
  const char* weight = nullptr;   // [columns/32][(tile+2)^2][lanes][32] of four bytes
  const float* scales = nullptr;  // Int16: [columns/32][(tile+2)^2][32]
  Kind kind = Kind::Float32;
  int columns = 0;
  int tile = 4;
  Epilogue epilogue;
  bool upsample = false;
};

struct GroupNormArguments {
  Map x, out;
  const float *weight = nullptr, *bias = nullptr;
  int groups = 1;
  float epsilon = 1e-5f;
  bool silu = false;

  static auto maps() { return std::array{&GroupNormArguments::x, &GroupNormArguments::out}; }
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

struct AddArguments {
  Map a, b, out;  // b may be one image for all, or one row for each image

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
  int count = 0;
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

// Bytes of scratch, for all threads together and for each.
struct ScratchNeed {
  std::size_t shared = 0, own = 0;
};
template <typename Arguments>
ScratchNeed scratch_for(const Arguments&) {
  return {};
}
ScratchNeed scratch_for(const LinearArguments& arguments);
ScratchNeed scratch_for(const ConvArguments& arguments);
ScratchNeed scratch_for(const WinogradArguments& arguments);
ScratchNeed scratch_for(const GroupNormArguments& arguments);
ScratchNeed scratch_for(const AttentionArguments& arguments);

// Every operation that is compiled for each instruction set, and its arguments: from this list
// follow the table below, the kernels' declarations (ops/operations.h), the reader's
// (plan_reader.h), and what a network does with a record of this kind (network.cpp).
#define SDENGINE_OPERATIONS(X)      \
  X(linear, LinearArguments)        \
  X(conv, ConvArguments)            \
  X(winograd, WinogradArguments)    \
  X(group_norm, GroupNormArguments) \
  X(layer_norm, LayerNormArguments) \
  X(attention, AttentionArguments)  \
  X(add, AddArguments)              \
  X(activation, ActivationArguments)

// The operations, compiled for one instruction set.
struct Operations {
  const char* name;
#define SDENGINE_MEMBER(name, Arguments) \
  void (*name)(const Arguments&, ThreadPool&, const Scratch&);
  SDENGINE_OPERATIONS(SDENGINE_MEMBER)
#undef SDENGINE_MEMBER
  // Adds up products at full speed; returns the multiplications and additions done.
  std::int64_t (*peak)(Kind, std::int64_t rounds);
};

}  // namespace sdengine::nn
