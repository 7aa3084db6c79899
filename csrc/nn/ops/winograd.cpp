// 3x3 convolutions as F(4x4,3x3) or F(2x2,3x3): tiles of the input are transformed, multiplied by
// transformed weights at each of 36 or 16 points, and transformed back. A tile of 4x4 outputs takes
// 36 products a channel in the place of 144.
//
// In 16 bits each tile has its own scale at each point, so that the vector over the channels has a
// length of at most 2^15; the weights' have at most 2^16. By Cauchy and Schwarz no sum of products
// then leaves 32 bits, whatever the data. The points are 0, +-2/3, +-4/3 and infinity, at which the
// transforms magnify rounding least (csrc/README.md, numerics).

#include <cstring>

#include "nn/ops/epilogue.h"
#include "nn/ops/operations.h"
#include "nn/ops/quantize.h"
#include "nn/ops/tile.h"
#include "nn/parallel.h"
#include "nn/scratch.h"

namespace sdengine::nn::SDENGINE_ISA {
namespace {

template <int Tile>
struct Transform;

template <>
struct Transform<2> {
  static SDENGINE_INLINE void forward(const Floats* d, Floats* out) {
    out[0] = sub(d[0], d[2]);
    out[1] = add(d[1], d[2]);
    out[2] = sub(d[2], d[1]);
    out[3] = sub(d[1], d[3]);
  }
  static SDENGINE_INLINE void back(const Floats* m, Floats* y) {
    const Floats both = add(m[1], m[2]), difference = sub(m[1], m[2]);
    y[0] = add(m[0], both);
    y[1] = sub(difference, m[3]);
  }
};

template <>
struct Transform<4> {
  static constexpr float kA = 2.0f / 3.0f, kB = 4.0f / 3.0f;
  static SDENGINE_INLINE void forward(const Floats* d, Floats* out) {
    const Floats a = set(kA), b = set(kB), aa = set(kA * kA), bb = set(kB * kB);
    const Floats product = set(kA * kA * kB * kB), minus_sum = set(-(kA * kA + kB * kB));
    out[0] = fma(product, d[0], fma(minus_sum, d[2], d[4]));
    out[5] = fma(product, d[1], fma(minus_sum, d[3], d[5]));
    const Floats even_a = fnma(bb, d[2], d[4]), odd_a = fnma(bb, d[1], d[3]);
    out[1] = fma(a, odd_a, even_a);
    out[2] = fnma(a, odd_a, even_a);
    const Floats even_b = fnma(aa, d[2], d[4]), odd_b = fnma(aa, d[1], d[3]);
    out[3] = fma(b, odd_b, even_b);
    out[4] = fnma(b, odd_b, even_b);
  }
  static SDENGINE_INLINE void back(const Floats* m, Floats* y) {
    const Floats aa = set(kA * kA), bb = set(kB * kB);
    const Floats sum_a = add(m[1], m[2]), sum_b = add(m[3], m[4]);
    const Floats odd_a = mul(set(kA), sub(m[1], m[2])), odd_b = mul(set(kB), sub(m[3], m[4]));
    y[0] = add(m[0], add(sum_a, sum_b));
    y[1] = add(odd_a, odd_b);
    y[2] = fma(aa, sum_a, mul(bb, sum_b));
    y[3] = add(m[5], fma(aa, odd_a, mul(bb, odd_b)));
  }
};

struct Place {
  int image, y, x;  // of the tile's first output
};

class Tiles {
 public:
  explicit Tiles(const WinogradArguments& conv) : conv_(conv), sizes(conv) {}

  Place place(int tile) const {
    const int per_image = sizes.tiles_x * sizes.tiles_y, in_image = tile % per_image;
    return {tile / per_image, in_image / sizes.tiles_x * conv_.tile,
            in_image % sizes.tiles_x * conv_.tile};
  }

  // The pixels under a tile; `zeros` stands for those outside.
  template <int Tile>
  void pixels(int tile, const char* zeros, const char** found) const {
    constexpr int kSide = Tile + 2;
    const Map& x = conv_.x;
    const int shift = conv_.upsample ? 1 : 0;
    const Place at = place(tile);
    for (int i = 0; i < kSide; ++i) {
      const int y = place_read(at.y + i - 1, x.height << shift, conv_.wraps.down);
      for (int j = 0; j < kSide; ++j) {
        const int column = place_read(at.x + j - 1, x.width << shift, conv_.wraps.across);
        found[i * kSide + j] =
            y < 0 || column < 0
                ? zeros
                : x.row((std::ptrdiff_t{at.image} * x.height + (y >> shift)) * x.width +
                        (column >> shift));
      }
    }
  }

 private:
  const WinogradArguments& conv_;

 public:
  const WinogradSizes sizes;
};

// Transforms one tile into [points][row] of floats, `pitch` floats apart.
template <int Tile, typename T>
__attribute__((noinline)) void transform(const char* const* pixels, int channels, float* out,
                                         std::ptrdiff_t pitch) {
  constexpr int kSide = Tile + 2;
  for (int c = 0; c < channels; c += kLanes) {
    const int count = least(kLanes, channels - c);
    Floats half[kSide][kSide];
    for (int j = 0; j < kSide; ++j) {
      Floats d[kSide], o[kSide];
      SDENGINE_UNROLL for (int i = 0; i < kSide; ++i) {
        d[i] = load_some(reinterpret_cast<const T*>(pixels[i * kSide + j]) + c, count);
      }
      Transform<Tile>::forward(d, o);
      SDENGINE_UNROLL for (int i = 0; i < kSide; ++i) half[i][j] = o[i];
    }
    for (int i = 0; i < kSide; ++i) {
      Floats o[kSide];
      Transform<Tile>::forward(half[i], o);
      SDENGINE_UNROLL for (int j = 0; j < kSide; ++j) {
        store(out + (i * kSide + j) * pitch + c, o[j]);
      }
    }
  }
}

struct Transformed {
  char* rows;     // [points][tiles of the block][row]
  float* scales;  // [points][tiles of the block]
};

template <int Tile>
void transform_tiles(const WinogradArguments& conv, const Tiles& tiles, int first, int last,
                     int block_first, const Transformed& to, float* one_tile, const char* zeros) {
  constexpr int kPoints = (Tile + 2) * (Tile + 2);
  const WinogradSizes& sizes = tiles.sizes;
  const int channels = conv.x.channels;
  const std::ptrdiff_t pitch = round_up((std::size_t(channels) + kPanel) * 4) / 4;
  const char* pixels[kPoints];
  for (int tile = first; tile < last; ++tile) {
    tiles.pixels<Tile>(tile, zeros, pixels);
    const int index = tile - block_first;
    char* rows = to.rows + index * sizes.row_bytes;
    if (conv.kind == Kind::Float32) {
      // Straight to its place: rows are multiples of 64 bytes.
      transform<Tile, float>(pixels, channels, reinterpret_cast<float*>(rows),
                             sizes.plane_bytes / 4);
      continue;
    }
    if (conv.x.type == Type::BFloat16) {
      transform<Tile, std::uint16_t>(pixels, channels, one_tile, pitch);
    } else {
      transform<Tile, float>(pixels, channels, one_tile, pitch);
    }
    for (int point = 0; point < kPoints; ++point) {
      to.scales[point * sizes.block + index] =
          quantize_int16([&](int c, int) { return load(one_tile + point * pitch + c); }, channels,
                         reinterpret_cast<std::int16_t*>(rows + point * sizes.plane_bytes));
    }
  }
}

// Transforms one tile's sums of a panel back and stores the outputs that exist.
template <int Tile, bool Scaled>
void transform_back(const WinogradArguments& conv, const Finish& finish, const Place& at, int panel,
                    const float* sums, std::ptrdiff_t pitch, const float* tile_scales,
                    std::ptrdiff_t scale_pitch) {
  constexpr int kSide = Tile + 2;
  const Map& out = conv.epilogue.out;
  const bool relu = conv.epilogue.activation == Activation::Relu;
  const int column = panel * kPanel, columns = least(kPanel, conv.out_channels - column);
  const int height = least(Tile, out.height - at.y), width = least(Tile, out.width - at.x);
  Finish::Row rows[Tile * Tile];
  for (int i = 0; i < height; ++i) {
    for (int j = 0; j < width; ++j) {
      rows[i * Tile + j] = finish.row_of(
          (std::ptrdiff_t{at.image} * out.height + at.y + i) * out.width + at.x + j, at.image);
      // The tile after the next one.
      __builtin_prefetch(rows[i * Tile + j].out + 2 * Tile * out.stride * size_of(out.type) +
                             column * size_of(out.type),
                         1, 3);
    }
  }
  const float* scales = conv.scales + std::ptrdiff_t{panel} * kSide * kSide * kPanel;
  for (int c = 0; c < columns; c += kLanes) {
    Floats half[Tile][kSide];
    SDENGINE_UNROLL for (int j = 0; j < kSide; ++j) {
      Floats m[kSide], y[Tile];
      SDENGINE_UNROLL for (int i = 0; i < kSide; ++i) {
        const int point = i * kSide + j;
        const float* from = sums + point * pitch + c;
        if constexpr (Scaled) {
          const Floats scale =
              mul(load(scales + point * kPanel + c), set(tile_scales[point * scale_pitch]));
          m[i] = mul(load_int32(reinterpret_cast<const std::int32_t*>(from)), scale);
        } else {
          m[i] = load(from);
        }
      }
      Transform<Tile>::back(m, y);
      SDENGINE_UNROLL for (int i = 0; i < Tile; ++i) half[i][j] = y[i];
    }
    const int count = least(kLanes, columns - c);
    SDENGINE_UNROLL for (int i = 0; i < Tile; ++i) {
      Floats y[Tile];
      Transform<Tile>::back(half[i], y);
      if (i >= height) break;
      SDENGINE_UNROLL for (int j = 0; j < Tile; ++j) {
        if (j < width && relu) {
          finish.put<Activation::Relu>(rows[i * Tile + j], column + c, y[j], count);
        } else if (j < width) {
          finish.put<Activation::None>(rows[i * Tile + j], column + c, y[j], count);
        }
      }
    }
  }
}

// Multiplies the tiles of a block by some panels and stores the outputs.
template <int Tile>
void multiply_tiles(const WinogradArguments& conv, const Tiles& tiles, const Finish& finish,
                    int first, int last, const Transformed& block, int panel, int last_panel,
                    float* sums) {
  constexpr int kPoints = (Tile + 2) * (Tile + 2);
  const WinogradSizes& sizes = tiles.sizes;
  const int count = last - first;
  const std::ptrdiff_t pitch = std::ptrdiff_t{sizes.block} * kPanel + kCacheLine / 4;
  const std::size_t panel_bytes = std::size_t(sizes.words) * kPanel * 4;
  for (; panel < last_panel; ++panel) {
    const char* weight = conv.weight + panel * kPoints * panel_bytes;
    for (int point = 0; point < kPoints; ++point, weight += panel_bytes) {
      const bool end = panel + 1 == last_panel && point + 1 == kPoints;
      multiply(conv.kind, count, block.rows + point * sizes.plane_bytes, sizes.row_bytes, weight,
               sizes.words, sums + point * pitch, false, end ? nullptr : weight + panel_bytes);
    }
    for (int tile = 0; tile < count; ++tile) {
      const Place at = tiles.place(first + tile);
      const float* from = sums + tile * kPanel;
      if (conv.kind == Kind::Int16) {
        transform_back<Tile, true>(conv, finish, at, panel, from, pitch, block.scales + tile,
                                   sizes.block);
      } else {
        transform_back<Tile, false>(conv, finish, at, panel, from, pitch, nullptr, 0);
      }
    }
  }
}

template <int Tile>
void convolve(const WinogradArguments& conv, ThreadPool& pool, const Scratch& scratch) {
  const Tiles tiles(conv);
  const WinogradSizes& sizes = tiles.sizes;
  const Finish finish(conv.epilogue);
  const int panels = (conv.out_channels + kPanel - 1) / kPanel;
  const std::size_t zero_bytes = round_up((std::size_t(conv.x.channels) + kPanel) * 4);
  const std::size_t transformed_bytes = sizes.points * sizes.plane_bytes;
  struct Own {
    char* zeros;
    float* one_tile;
    float* sums;
    Transformed block;
  };
  const auto own = [&](int thread) {
    char* at = scratch.of(thread);
    Own parts;
    parts.zeros = at;
    std::memset(parts.zeros, 0, zero_bytes);
    at += zero_bytes;
    parts.one_tile = reinterpret_cast<float*>(at);
    at += sizes.points * zero_bytes;
    parts.sums = reinterpret_cast<float*>(at);
    at += sizes.points * (std::size_t(sizes.block) * kPanel * 4 + kCacheLine);
    char* rows = sizes.shares_tiles ? scratch.shared : at;
    parts.block = {rows, reinterpret_cast<float*>(rows + transformed_bytes)};
    return parts;
  };
  if (sizes.shares_tiles) {
    in_parallel(pool, sizes.tiles, [&](std::ptrdiff_t first, std::ptrdiff_t last, int thread) {
      const Own parts = own(thread);
      transform_tiles<Tile>(conv, tiles, static_cast<int>(first), static_cast<int>(last), 0,
                            parts.block, parts.one_tile, parts.zeros);
    });
    in_parallel(pool, panels, [&](std::ptrdiff_t first, std::ptrdiff_t last, int thread) {
      const Own parts = own(thread);
      multiply_tiles<Tile>(conv, tiles, finish, 0, sizes.tiles, parts.block,
                           static_cast<int>(first), static_cast<int>(last), parts.sums);
    });
    return;
  }
  in_parallel(pool, sizes.tiles, [&](std::ptrdiff_t first, std::ptrdiff_t last, int thread) {
    const Own parts = own(thread);
    const std::ptrdiff_t blocks = (last - first + sizes.block - 1) / sizes.block;
    for (std::ptrdiff_t block = 0; block < blocks; ++block) {
      const Range range = share(last - first, static_cast<int>(block), static_cast<int>(blocks));
      const int begin = static_cast<int>(first + range.first);
      const int end = static_cast<int>(first + range.last);
      transform_tiles<Tile>(conv, tiles, begin, end, begin, parts.block, parts.one_tile,
                            parts.zeros);
      multiply_tiles<Tile>(conv, tiles, finish, begin, end, parts.block, 0, panels, parts.sums);
    }
  });
}

}  // namespace

void winograd(const WinogradArguments& arguments, ThreadPool& pool, const Scratch& scratch) {
  if (arguments.tile == 2) {
    convolve<2>(arguments, pool, scratch);
  } else {
    convolve<4>(arguments, pool, scratch);
  }
}

}  // namespace sdengine::nn::SDENGINE_ISA
