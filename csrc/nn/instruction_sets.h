#pragma once

#include <string>
#include <vector>

#include "nn/operation_table.h"

namespace sdengine::nn {

// Names of the instruction sets that the kernels of this build were compiled for.
std::vector<std::string> built_instruction_sets();

// Names of those that this processor runs, the fastest first.
std::vector<std::string> instruction_sets();

// The operations of the one named; of the fastest for "".
// Throws std::invalid_argument for one that is not among instruction_sets().
const Operations& operations_for(const std::string& isa);

}  // namespace sdengine::nn
