#pragma once

#include "cuda_runtime_api.h"

#define __host__
#define __device__
