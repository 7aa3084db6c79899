// The register tile that linear layers, convolutions and attention are made of: kTileRows rows
// times kTileVectors vectors stay in registers while k passes by. Each step reads
// one vector row of the panel and broadcasts four bytes of every row, so that A needs no packing.

#include "nn/ops/tile.h"

namespace sdengine::nn::SDENGINE_ISA {
namespace {

constexpr int kPanelBytes = kPanel * 4;
constexpr int kTileBytes = kTileVectors * kLanes * 4;
// Steps ahead that the panel is fetched; measured at k of 320 to 1280.
constexpr int kAhead = 16;

template <typename Dot, int Rows>
__attribute__((noinline)) void tile(const char* a, std::ptrdiff_t a_bytes, const char* panel,
                                    int words, char* sums, bool accumulate, const char* next) {
  typename Dot::Sum sum[Rows][kTileVectors];
  SDENGINE_UNROLL for (int r = 0; r < Rows; ++r) {
    SDENGINE_UNROLL for (int v = 0; v < kTileVectors; ++v) {
      if (accumulate) {
        load_sum(sum[r][v], sums + r * kPanelBytes + v * kLanes * 4);
      } else {
        sum[r][v] = zero_sum(typename Dot::Sum{});
      }
    }
  }
  const std::ptrdiff_t step = next == nullptr ? 0 : 64;
  if (next == nullptr) next = a;
  for (int word = 0; word < words; ++word) {
    Words b[kTileVectors];
    SDENGINE_UNROLL for (int v = 0; v < kTileVectors; ++v) {
      b[v] = load_words(panel + v * kLanes * 4);
    }
    for (int line = 0; line < kTileBytes; line += 64) {
      __builtin_prefetch(panel + kAhead * kPanelBytes + line);
    }
    __builtin_prefetch(next, 0, 2);
    next += step;
    SDENGINE_UNROLL for (int r = 0; r < Rows; ++r) {
      const Words value = broadcast(a + r * a_bytes);
      SDENGINE_UNROLL for (int v = 0; v < kTileVectors; ++v) {
        sum[r][v] = Dot::dot(sum[r][v], value, b[v]);
      }
    }
    a += 4;
    panel += kPanelBytes;
  }
  SDENGINE_UNROLL for (int r = 0; r < Rows; ++r) {
    SDENGINE_UNROLL for (int v = 0; v < kTileVectors; ++v) {
      store_sum(sums + r * kPanelBytes + v * kLanes * 4, sum[r][v]);
    }
  }
}

using Tile = void (*)(const char*, std::ptrdiff_t, const char*, int, char*, bool, const char*);

template <typename Dot, int Rows>
struct Fill {
  static void into(Tile* tiles) {
    tiles[Rows] = &tile<Dot, Rows>;
    Fill<Dot, Rows - 1>::into(tiles);
  }
};
template <typename Dot>
struct Fill<Dot, 0> {
  static void into(Tile*) {}
};

struct Tiles {
  Tile of[4][kTileRows + 1];
  Tiles() {
    Fill<DotFloat, kTileRows>::into(of[static_cast<int>(Kind::Float32)]);
    Fill<DotBf16, kTileRows>::into(of[static_cast<int>(Kind::BFloat16)]);
    Fill<DotInt16, kTileRows>::into(of[static_cast<int>(Kind::Int16)]);
    Fill<DotInt8, kTileRows>::into(of[static_cast<int>(Kind::Int8)]);
  }
};

}  // namespace

void multiply(Kind kind, int rows, const char* a, std::ptrdiff_t a_bytes, const char* panel,
              int words, void* sums, bool accumulate, const char* next) {
  static const Tiles tiles;
  const Tile* table = tiles.of[static_cast<int>(kind)];
  const int strips = (rows + kTileRows - 1) / kTileRows;
  for (int strip = 0; strip < strips; ++strip) {
    // Equal strips: 13 rows as 7 and 6, not as 12 and 1.
    const int first = rows * strip / strips;
    const int count = rows * (strip + 1) / strips - first;
    for (int column = 0; column < kPanelBytes; column += kTileBytes) {
      table[count](a + first * a_bytes, a_bytes, panel + column, words,
                   static_cast<char*>(sums) + first * kPanelBytes + column, accumulate, next);
    }
    if (next != nullptr) next += std::ptrdiff_t{words} * 64;
  }
}

}  // namespace sdengine::nn::SDENGINE_ISA
