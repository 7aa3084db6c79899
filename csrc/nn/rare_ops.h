#pragma once

#include "nn/arguments.h"

namespace sdengine::nn {

class ThreadPool;

// Small or rare operations, in plain C++ on the calling thread.
void sinusoid(const SinusoidArguments& arguments);
void select(const SelectArguments& arguments);

// Copies on all threads of the pool.
void copy(const CopyArguments& arguments, ThreadPool& pool);

}  // namespace sdengine::nn
