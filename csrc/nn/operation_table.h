#pragma once

#include <cstdint>

#include "nn/arguments.h"
#include "nn/scratch.h"

namespace sdengine::nn {

class ThreadPool;

// The operations, compiled for one instruction set.
struct Operations {
  const char* name;
  void (*linear)(const LinearArguments&, ThreadPool&, const Scratch&);
  void (*conv)(const ConvArguments&, ThreadPool&, const Scratch&);
  void (*winograd)(const WinogradArguments&, ThreadPool&, const Scratch&);
  void (*group_norm)(const GroupNormArguments&, ThreadPool&, const Scratch&);
  void (*layer_norm)(const LayerNormArguments&, ThreadPool&, const Scratch&);
  void (*attention)(const AttentionArguments&, ThreadPool&, const Scratch&);
  void (*add)(const AddArguments&, ThreadPool&, const Scratch&);
  void (*activation)(const ActivationArguments&, ThreadPool&, const Scratch&);
  // Adds up products at full speed; returns the multiplications and additions done.
  std::int64_t (*peak)(Kind, std::int64_t rounds);
};

}  // namespace sdengine::nn
