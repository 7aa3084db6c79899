#include "nn/instruction_sets.h"

#include <stdexcept>

namespace sdengine::nn {

namespace portable {
extern const Operations kOperations;
}
#ifdef SDENGINE_NEON_SET
namespace neon {
extern const Operations kOperations;
}
#endif
#ifdef SDENGINE_X86_SETS
namespace avx2 {
extern const Operations kOperations;
}
namespace avx512 {
extern const Operations kOperations;
}
namespace avx512_vnni {
extern const Operations kOperations;
}
namespace avx512_bf16 {
extern const Operations kOperations;
}
#endif

namespace {

std::vector<const Operations*> runnable() {
  std::vector<const Operations*> found;
#ifdef SDENGINE_X86_SETS
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  // Intel's processors add up pairs of bf16 at half the speed of floats; whole numbers at twice.
  const bool slow_bf16 = __builtin_cpu_is("intel");
  if (bf16 && !slow_bf16) found.push_back(&avx512_bf16::kOperations);
  if (vnni) found.push_back(&avx512_vnni::kOperations);
  if (bf16 && slow_bf16) found.push_back(&avx512_bf16::kOperations);
  if (avx512) found.push_back(&avx512::kOperations);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back(&avx2::kOperations);
  }
#endif
#ifdef SDENGINE_NEON_SET
  found.push_back(&neon::kOperations);
#endif
  found.push_back(&portable::kOperations);
  return found;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Operations* operations : runnable()) names.emplace_back(operations->name);
  return names;
}

const Operations& operations_for(const std::string& isa) {
  const auto found = runnable();
  if (isa.empty()) return *found.front();
  std::string names;
  for (const Operations* operations : found) {
    if (isa == operations->name) return *operations;
    names += (names.empty() ? "" : ", ") + std::string(operations->name);
  }
  throw std::invalid_argument("instruction set '" + isa + "' is not available here; there are " +
                              names);
}

}  // namespace sdengine::nn
