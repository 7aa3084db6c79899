#include "nn/ops/operations.h"

#define SDENGINE_TEXT_2(name) #name
#define SDENGINE_TEXT(name) SDENGINE_TEXT_2(name)

namespace sdengine::nn::SDENGINE_ISA {

extern const Operations kOperations;
const Operations kOperations = {
    SDENGINE_TEXT(SDENGINE_ISA),
    linear,
    conv,
    winograd,
    group_norm,
    layer_norm,
    attention,
    add,
    activation,
    peak,
};

}  // namespace sdengine::nn::SDENGINE_ISA
