#pragma once

#include <string>
#include <vector>

#include "nn/arguments.h"

namespace sdengine::nn {

// Names of the instruction sets that this build has and this processor runs, the fastest first.
std::vector<std::string> instruction_sets();

// The operations of the one named; of the fastest for "".
// Throws std::invalid_argument for one that is not among instruction_sets().
const Operations& operations_for(const std::string& isa);

}  // namespace sdengine::nn
