#include <cstring>

#include "common/half.h"
#include "cpu/kernels.h"

namespace sdengine::cpu {

bool table_rows(const float* table, std::size_t num_rows, std::size_t width,
                const std::int64_t* rows, std::size_t count, float* out) {
  for (std::size_t i = 0; i < count; ++i) {
    if (rows[i] < 0 || static_cast<std::size_t>(rows[i]) >= num_rows) return false;
    std::memcpy(out + i * width, table + static_cast<std::size_t>(rows[i]) * width,
                width * sizeof(float));
  }
  return true;
}

bool table_rows(const std::uint16_t* table, std::size_t num_rows, std::size_t width,
                const std::int64_t* rows, std::size_t count, float* out) {
  for (std::size_t i = 0; i < count; ++i) {
    if (rows[i] < 0 || static_cast<std::size_t>(rows[i]) >= num_rows) return false;
    const std::uint16_t* const source = table + static_cast<std::size_t>(rows[i]) * width;
    float* const target = out + i * width;
    for (std::size_t e = 0; e < width; ++e) target[e] = from_half(source[e]);
  }
  return true;
}

}  // namespace sdengine::cpu
