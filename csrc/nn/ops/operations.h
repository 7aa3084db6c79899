#pragma once

#include "nn/operation_table.h"

namespace sdengine::nn::SDENGINE_ISA {

#define SDENGINE_DECLARE(name, Arguments) \
  void name(const Arguments& arguments, ThreadPool& pool, const Scratch& scratch);
SDENGINE_OPERATIONS(SDENGINE_DECLARE)
#undef SDENGINE_DECLARE
// What `attention` does with bf16 maps: one where the set multiplies bf16 (kMultipliesBf16), the
// other elsewhere.
void attention_bf16(const AttentionArguments& arguments, ThreadPool& pool, const Scratch& scratch);
void attention_int16(const AttentionArguments& arguments, ThreadPool& pool, const Scratch& scratch);
void moments(const Map& x, ThreadPool& pool, float* sums, double* means, double* deviations);
bool pack_panel(const Packing& packing, int panel, float* scratch);
bool merge_rows(const Source& source, int k, int first, int count, float* to);
std::int64_t peak(Kind kind, std::int64_t rounds);

}  // namespace sdengine::nn::SDENGINE_ISA
