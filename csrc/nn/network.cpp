#include "nn/network.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <type_traits>

#include "common/errors.h"
#include "nn/plan_reader.h"
#include "nn/processor_gate.h"
#include "nn/rare_ops.h"
#include "nn/scratch.h"

namespace sdengine::nn {
namespace {

// Steps take their maps' addresses from the arena once it exists.
using Step = std::function<void(ThreadPool&, const Scratch&)>;
using Binder = std::function<Step(char* arena)>;

struct Planned {
  Binder bind;
  ScratchNeed need;
};

void move(Map& map, char* arena) { map.data = arena + reinterpret_cast<std::uintptr_t>(map.data); }

// Epilogues point at maps, which are copied along with them.
struct EpilogueMaps {
  Map per_image, residual;
  bool has_per_image = false, has_residual = false;

  void attach(Epilogue& epilogue, char* arena) {
    move(epilogue.out, arena);
    if (has_per_image) {
      move(per_image, arena);
      epilogue.per_image = &per_image;
    }
    if (has_residual) {
      move(residual, arena);
      epilogue.residual = &residual;
    }
  }
};

template <typename Arguments>
struct WithEpilogue {
  Arguments arguments;
  EpilogueMaps maps;
};

template <typename Arguments, typename Function>
Planned plan_products(const OperationReader& reader, Arguments arguments, Function function) {
  WithEpilogue<Arguments> both{arguments, {}};
  both.maps.has_per_image = reader.has("per_image");
  both.maps.has_residual = reader.has("residual");
  if (both.maps.has_per_image) both.maps.per_image = reader.per_image(arguments.epilogue.out);
  if (both.maps.has_residual) both.maps.residual = reader.like("residual", arguments.epilogue.out);
  return {[both, function](char* arena) -> Step {
            auto bound = std::make_shared<WithEpilogue<Arguments>>(both);
            move(bound->arguments.x, arena);
            bound->maps.attach(bound->arguments.epilogue, arena);
            return [bound, function](ThreadPool& pool, const Scratch& scratch) {
              function(bound->arguments, pool, scratch);
            };
          },
          scratch_for(arguments)};
}

template <typename Arguments, typename Function>
Planned plan_maps(Arguments arguments, Function function) {
  return {[=](char* arena) -> Step {
            Arguments bound = arguments;
            for (const auto map : Arguments::maps()) move(bound.*map, arena);
            return [bound, function](ThreadPool& pool, const Scratch& scratch) {
              function(bound, pool, scratch);
            };
          },
          scratch_for(arguments)};
}

template <typename Arguments, typename = void>
struct HasEpilogue : std::false_type {};
template <typename Arguments>
struct HasEpilogue<Arguments, std::void_t<decltype(Arguments::epilogue)>> : std::true_type {};

template <typename Arguments, typename Function>
Planned plan_operation(const OperationReader& reader, Arguments arguments, Function function) {
  if constexpr (HasEpilogue<Arguments>::value) {
    return plan_products(reader, arguments, function);
  } else {
    return plan_maps(arguments, function);
  }
}

Planned plan_copy(CopyArguments arguments) {
  return {[arguments](char* arena) -> Step {
            CopyArguments bound = arguments;
            bound.from = arena + reinterpret_cast<std::uintptr_t>(arguments.from);
            bound.to = arena + reinterpret_cast<std::uintptr_t>(arguments.to);
            return [bound](ThreadPool& pool, const Scratch&) { copy(bound, pool); };
          },
          {}};
}

Planned plan_one(const OperationReader& reader, const Operations& operations) {
  const std::string& kind = reader.kind();
#define SDENGINE_PLAN(name, Arguments) \
  if (kind == #name) return plan_operation(reader, reader.name(), operations.name);
  SDENGINE_OPERATIONS(SDENGINE_PLAN)
#undef SDENGINE_PLAN
  if (kind == "sinusoid") {
    return plan_maps(reader.sinusoid(),
                     [](const SinusoidArguments& a, ThreadPool&, const Scratch&) { sinusoid(a); });
  }
  if (kind == "select") {
    return plan_maps(reader.select(),
                     [](const SelectArguments& a, ThreadPool&, const Scratch&) { select(a); });
  }
  if (kind == "copy") return plan_copy(reader.copy());
  reader.refuse("is of kind '" + kind + "', which is unknown");
}

}  // namespace

Network::Network(const std::vector<OperationRecord>& records,
                 const std::map<std::string, WeightBytes>& weights, const Operations& operations,
                 std::shared_ptr<ThreadPool> pool)
    : operations_(operations), pool_(std::move(pool)), records_(records), weights_(weights) {
  Extent extent;
  std::vector<Planned> planned;
  std::size_t shared = 0, own = 0;
  for (const OperationRecord& record : records) {
    const OperationReader reader(record, weights, extent);
    planned.push_back(plan_one(reader, operations));
    shared = std::max(shared, planned.back().need.shared);
    own = std::max(own, planned.back().need.own);
  }
  arena_bytes_ = round_up(extent.bytes);
  scratch_.own_bytes = round_up(own);
  shared = round_up(shared);
  scratch_bytes_ = shared + scratch_.own_bytes * pool_->threads();
  // Vectors at the end of a map may read a little beyond it.
  memory_bytes_ = arena_bytes_ + scratch_bytes_ + 4096;
  const std::size_t physical = std::size_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  if (memory_bytes_ > physical) {
    throw OutOfMemoryError("a network needs " + std::to_string(memory_bytes_) +
                           " bytes for what its operations pass on; this machine has " +
                           std::to_string(physical));
  }
  void* memory = mmap(nullptr, memory_bytes_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw OutOfMemoryError("a network needs " + std::to_string(memory_bytes_) +
                           " bytes for what its operations pass on");
  }
  memory_ = static_cast<char*>(memory);
  madvise(memory_, memory_bytes_, MADV_HUGEPAGE);
  scratch_.shared = memory_ + arena_bytes_;
  scratch_.own = scratch_.shared + shared;
  for (const Planned& one : planned) steps_.push_back(one.bind(memory_));
}

Network::~Network() {
  if (memory_ != nullptr) munmap(memory_, memory_bytes_);
}

void Network::rebind(const std::map<std::string, WeightBytes>& weights) {
  std::map<std::string, WeightBytes> all = weights_;
  for (const auto& [name, bytes] : weights) {
    const auto found = all.find(name);
    if (found == all.end()) throw PlanError("no operation reads the weight '" + name + "'");
    if (found->second.bytes != bytes.bytes) {
      throw PlanError("the weight '" + name + "' has " + std::to_string(bytes.bytes) +
                      " bytes, not " + std::to_string(found->second.bytes));
    }
    found->second = bytes;
  }
  std::vector<std::pair<std::size_t, Step>> changed;
  Extent extent;
  for (std::size_t i = 0; i < records_.size(); ++i) {
    const auto& read = records_[i].weights;
    const bool is_changed = std::any_of(
        read.begin(), read.end(), [&](const auto& one) { return weights.count(one.second) > 0; });
    if (!is_changed) continue;
    const OperationReader reader(records_[i], all, extent);
    changed.emplace_back(i, plan_one(reader, operations_).bind(memory_));
  }
  for (auto& [index, step] : changed) steps_[index] = std::move(step);
  weights_ = std::move(all);
}

char* Network::address(const MapRecord& map) const {
  Extent extent;
  const Map found = read_map(map, "a network's own map", extent);
  if (extent.bytes > arena_bytes_) throw PlanError("a map lies outside the arena");
  return memory_ + reinterpret_cast<std::uintptr_t>(found.data);
}

void Network::moments(const MapRecord& record, double* means, double* deviations) {
  Extent extent;
  Map map = read_map(record, "a network's own map", extent);
  if (extent.bytes > arena_bytes_) throw PlanError("a map lies outside the arena");
  if (map.images != 1 || map.type == Type::Int64) {
    throw PlanError("moments are those of one image of floats");
  }
  move(map, memory_);
  std::vector<float> sums(norm_sums_bytes(map) / sizeof(float));
  const auto held = pool_->hold();
  const ProcessorGate::Pass pass(pool_->threads());
  operations_.moments(map, *pool_, sums.data(), means, deviations);
}

void Network::run(double* seconds) {
  using Clock = std::chrono::steady_clock;
  const auto held = pool_->hold();
  const ProcessorGate::Pass pass(pool_->threads());
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    const Clock::time_point started = seconds != nullptr ? Clock::now() : Clock::time_point{};
    steps_[i](*pool_, scratch_);
    if (seconds != nullptr) {
      seconds[i] = std::chrono::duration<double>(Clock::now() - started).count();
    }
  }
}

void Network::run_one(std::size_t index) {
  const auto held = pool_->hold();
  const ProcessorGate::Pass pass(pool_->threads());
  steps_.at(index)(*pool_, scratch_);
}

}  // namespace sdengine::nn
