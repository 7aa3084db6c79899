// GroupNorm, with or without SiLU, in two passes over the map. The first adds up each channel over
// chunks of pixels whose borders do not depend on the number of threads, relative to the image's
// first pixel: so the variance loses nothing where a mean is much larger than what varies around
// it.

#include "nn/ops/epilogue.h"
#include "nn/ops/operations.h"
#include "nn/parallel.h"
#include "nn/scratch.h"

namespace sdengine::nn::SDENGINE_ISA {
namespace {

struct Sums {
  float *sum, *square;  // [channels]
};

// Adds up rows of kVectors vectors of channels in registers.
template <int Vectors, typename T>
void add_up(const Map& x, std::ptrdiff_t first, std::ptrdiff_t last, std::ptrdiff_t origin, int c,
            int channels, const Sums& to) {
  Floats shift[Vectors], sum[Vectors], square[Vectors];
  for (int v = 0; v < Vectors; ++v) {
    const int at = c + v * kLanes;
    shift[v] =
        load_some(reinterpret_cast<const T*>(x.row(origin)) + at, least(kLanes, channels - at));
    sum[v] = square[v] = zeros();
  }
  for (std::ptrdiff_t row = first; row < last; ++row) {
    const T* values = reinterpret_cast<const T*>(x.row(row)) + c;
    SDENGINE_UNROLL for (int v = 0; v < Vectors; ++v) {
      const int count = Vectors == 1 ? least(kLanes, channels - c) : kLanes;
      const Floats value = sub(load_some(values + v * kLanes, count), shift[v]);
      sum[v] = add(sum[v], value);
      square[v] = fma(value, value, square[v]);
    }
  }
  for (int v = 0; v < Vectors; ++v) {
    store(to.sum + c + v * kLanes, sum[v]);
    store(to.square + c + v * kLanes, square[v]);
  }
}

template <typename T>
void add_up_rows(const Map& x, std::ptrdiff_t first, std::ptrdiff_t last, std::ptrdiff_t origin,
                 const Sums& to) {
  int c = 0;
  for (; c + 4 * kLanes <= x.channels; c += 4 * kLanes) {
    add_up<4, T>(x, first, last, origin, c, x.channels, to);
  }
  for (; c < x.channels; c += kLanes) add_up<1, T>(x, first, last, origin, c, x.channels, to);
}

template <typename T, bool Silu>
void apply(const Map& x, const Map& out, std::ptrdiff_t row, const float* scale,
           const float* shift) {
  const T* from = reinterpret_cast<const T*>(x.row(row));
  T* to = reinterpret_cast<T*>(out.row(row));
  for (int c = 0; c < x.channels; c += kLanes) {
    const int count = least(kLanes, x.channels - c);
    Floats value = fma(load_some(from + c, count), load(scale + c), load(shift + c));
    if (Silu) value = silu(value);
    store_some(to + c, value, count);
  }
}

template <typename T>
float value_of(const Map& x, std::ptrdiff_t row, int channel) {
  alignas(64) float values[kLanes];
  store(values, load_some(reinterpret_cast<const T*>(x.row(row)) + channel, 1));
  return values[0];
}

// Sums of an image's channels: of the first chunk of rows those of every channel, then those of
// their squares, then those of the next chunk, `pitch` values apart.
struct Chunks {
  std::ptrdiff_t pixels, count;
  std::size_t pitch;

  explicit Chunks(const Map& x)
      : pixels(x.pixels()),
        count((pixels + kNormRows - 1) / kNormRows),
        pitch(round_up((std::size_t(x.channels) + kPanel) * 4) / 4) {}
};

template <typename T>
void add_up_chunks(const Map& x, const Chunks& chunks, ThreadPool& pool, float* sums) {
  in_parallel(pool, x.images * chunks.count, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
    for (std::ptrdiff_t at = first; at < last; ++at) {
      const std::ptrdiff_t origin = at / chunks.count * chunks.pixels;
      const Range rows =
          share(chunks.pixels, static_cast<int>(at % chunks.count), static_cast<int>(chunks.count));
      float* chunk = sums + at * 2 * chunks.pitch;
      add_up_rows<T>(x, origin + rows.first, origin + rows.last, origin,
                     {chunk, chunk + chunks.pitch});
    }
  });
}

template <typename T>
void apply_rows(const Map& x, const Map& out, const float* factors, std::size_t image_pitch,
                std::size_t pitch, bool with_silu, ThreadPool& pool) {
  in_parallel(pool, x.rows(), [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
    for (std::ptrdiff_t row = first; row < last; ++row) {
      const float* scale = factors + row / x.pixels() * image_pitch;
      if (with_silu) {
        apply<T, true>(x, out, row, scale, scale + pitch);
      } else {
        apply<T, false>(x, out, row, scale, scale + pitch);
      }
    }
  });
}

template <typename T>
void channel_moments(const Map& x, ThreadPool& pool, float* sums, double* means,
                     double* deviations) {
  const Chunks chunks(x);
  add_up_chunks<T>(x, chunks, pool, sums);
  for (int c = 0; c < x.channels; ++c) {
    double sum = 0.0, square = 0.0;
    for (std::ptrdiff_t chunk = 0; chunk < chunks.count; ++chunk) {
      const float* of = sums + chunk * 2 * chunks.pitch;
      sum += of[c];
      square += of[chunks.pitch + c];
    }
    const double offset = sum / chunks.pixels;
    means[c] = offset + value_of<T>(x, 0, c);
    deviations[c] = square - sum * offset;
  }
}

template <typename T>
void normalize(const GroupNormArguments& arguments, ThreadPool& pool, const Scratch& scratch) {
  const Map& x = arguments.x;
  const Chunks all(x);
  const std::ptrdiff_t pixels = all.pixels, chunks = all.count;
  const std::size_t pitch = all.pitch;
  auto* sums = reinterpret_cast<float*>(scratch.shared);
  float* factors = sums + x.images * chunks * 2 * pitch;
  add_up_chunks<T>(x, all, pool, sums);
  const int per_group = x.channels / arguments.groups;
  in_parallel(
      pool, std::ptrdiff_t{x.images} * arguments.groups,
      [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
        for (std::ptrdiff_t at = first; at < last; ++at) {
          const std::ptrdiff_t image = at / arguments.groups;
          const int begin = static_cast<int>(at % arguments.groups) * per_group;
          // Each channel's mean and deviations, then those of the group from them.
          double mean = 0.0, deviations = 0.0, squares = 0.0;
          for (int c = begin; c < begin + per_group; ++c) {
            double sum = 0.0, square = 0.0;
            for (std::ptrdiff_t chunk = 0; chunk < chunks; ++chunk) {
              const float* of = sums + (image * chunks + chunk) * 2 * pitch;
              sum += of[c];
              square += of[pitch + c];
            }
            const double offset = sum / pixels;
            deviations += square - sum * offset;
            const double own = offset + value_of<T>(x, image * pixels, c);
            mean += own;
            squares += own * own;
          }
          mean /= per_group;
          double between = 0.0;
          for (int c = begin; c < begin + per_group; ++c) {
            double sum = 0.0;
            for (std::ptrdiff_t chunk = 0; chunk < chunks; ++chunk) {
              sum += sums[(image * chunks + chunk) * 2 * pitch + c];
            }
            const double gap = sum / pixels + value_of<T>(x, image * pixels, c) - mean;
            between += gap * gap;
          }
          const double variance = (deviations + between * pixels) / (double(pixels) * per_group);
          const double inverse =
              1.0 / __builtin_sqrt(variance + static_cast<double>(arguments.epsilon));
          float* scale = factors + image * 2 * pitch;
          for (int c = begin; c < begin + per_group; ++c) {
            scale[c] = static_cast<float>(arguments.weight[c] * inverse);
            scale[pitch + c] =
                static_cast<float>(arguments.bias[c] - mean * inverse * arguments.weight[c]);
          }
        }
      });
  apply_rows<T>(x, arguments.out, factors, 2 * pitch, pitch, arguments.silu, pool);
}

}  // namespace

void group_norm(const GroupNormArguments& arguments, ThreadPool& pool, const Scratch& scratch) {
  if (arguments.x.type == Type::BFloat16) {
    normalize<std::uint16_t>(arguments, pool, scratch);
  } else {
    normalize<float>(arguments, pool, scratch);
  }
}

void affine(const AffineArguments& arguments, ThreadPool& pool, const Scratch&) {
  const Map &x = arguments.x, &out = arguments.out;
  const auto* factors = reinterpret_cast<const float*>(arguments.factors.data);
  const std::size_t image_pitch = arguments.factors.stride;
  if (x.type == Type::BFloat16) {
    apply_rows<std::uint16_t>(x, out, factors, image_pitch, x.channels, arguments.silu, pool);
  } else {
    apply_rows<float>(x, out, factors, image_pitch, x.channels, arguments.silu, pool);
  }
}

void moments(const Map& x, ThreadPool& pool, float* sums, double* means, double* deviations) {
  if (x.type == Type::BFloat16) {
    channel_moments<std::uint16_t>(x, pool, sums, means, deviations);
  } else {
    channel_moments<float>(x, pool, sums, means, deviations);
  }
}

}  // namespace sdengine::nn::SDENGINE_ISA
