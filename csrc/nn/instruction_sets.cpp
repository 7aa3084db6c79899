#include "nn/instruction_sets.h"

#include <stdexcept>
#include <utility>

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

struct InstructionSet {
  const Operations* operations;
  bool runs;  // on this processor
};

// The fastest first.
std::vector<InstructionSet> built() {
  std::vector<InstructionSet> found;
#ifdef SDENGINE_X86_SETS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  found = {{&avx512_bf16::kOperations, bf16},
           {&avx512_vnni::kOperations, vnni},
           {&avx512::kOperations, avx512},
           {&avx2::kOperations, avx2}};
  // Intel's processors add up pairs of bf16 at half the speed of floats; integers at twice.
  if (__builtin_cpu_is("intel")) std::swap(found[0], found[1]);
#endif
#ifdef SDENGINE_NEON_SET
  found.push_back({&neon::kOperations, true});
#endif
  found.push_back({&portable::kOperations, true});
  return found;
}

std::vector<const Operations*> runnable() {
  std::vector<const Operations*> found;
  for (const InstructionSet& one : built()) {
    if (one.runs) found.push_back(one.operations);
  }
  return found;
}

}  // namespace

std::vector<std::string> built_instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& one : built()) names.emplace_back(one.operations->name);
  return names;
}

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
