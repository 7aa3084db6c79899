#include "nn/ops/operations.h"

#define SDENGINE_TEXT_2(name) #name
#define SDENGINE_TEXT(name) SDENGINE_TEXT_2(name)

namespace sdengine::nn::SDENGINE_ISA {

extern const Operations kOperations;
const Operations kOperations = {
    SDENGINE_TEXT(SDENGINE_ISA),
// clang-format off
#define SDENGINE_ENTRY(name, Arguments) name,
    SDENGINE_OPERATIONS(SDENGINE_ENTRY)
#undef SDENGINE_ENTRY
    // clang-format on
    moments,
    pack_panel,
    merge_rows,
    peak,
};

}  // namespace sdengine::nn::SDENGINE_ISA
