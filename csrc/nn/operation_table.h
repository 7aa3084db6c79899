#pragma once

#include <cstdint>

#include "nn/arguments.h"
#include "nn/scratch.h"

namespace sdengine::nn {

class ThreadPool;
struct Packing;
struct Source;

// The operations, compiled for one instruction set.
struct Operations {
  const char* name;
#define SDENGINE_MEMBER(name, Arguments) \
  void (*name)(const Arguments&, ThreadPool&, const Scratch&);
  SDENGINE_OPERATIONS(SDENGINE_MEMBER)
#undef SDENGINE_MEMBER
  // Mean of each channel of an image, and its values' squared distances from it added up; `sums` is
  // scratch as for GroupNorm.
  void (*moments)(const Map& x, ThreadPool&, float* sums, double* means, double* deviations);
  // Merges and lays out one panel of a weight; false where a sum is not finite.
  bool (*pack_panel)(const Packing&, int panel, float* scratch);
  // Reads some rows of a tensor and adds its terms to them.
  bool (*merge_rows)(const Source&, int k, int first, int count, float* to);
  // Adds up products at full speed; returns the multiplications and additions done.
  std::int64_t (*peak)(Kind, std::int64_t rounds);
};

}  // namespace sdengine::nn
