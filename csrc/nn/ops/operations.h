#pragma once

#include "nn/arguments.h"

namespace sdengine::nn::SDENGINE_ISA {

#define SDENGINE_DECLARE(name, Arguments) \
  void name(const Arguments& arguments, ThreadPool& pool, const Scratch& scratch);
SDENGINE_OPERATIONS(SDENGINE_DECLARE)
#undef SDENGINE_DECLARE
std::int64_t peak(Kind kind, std::int64_t rounds);

}  // namespace sdengine::nn::SDENGINE_ISA
