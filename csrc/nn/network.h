#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "nn/operation_table.h"
#include "nn/thread_pool.h"

namespace sdengine::nn {

// A plan asks for something that cannot be: a map outside the arena, a weight of another size.
class PlanError : public std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// A map of the plan: where it lies in the arena, in bytes, and how it is laid out, in values.
struct MapRecord {
  std::int64_t offset = 0;
  std::string type;
  std::int64_t images = 0, height = 0, width = 0, channels = 0, stride = 0;
};

// One operation as the plan lists it; which fields it must have depends on its kind.
struct OperationRecord {
  std::string kind, name;
  std::map<std::string, MapRecord> maps;
  std::map<std::string, std::string> weights;  // role -> name
  std::map<std::string, double> numbers;
  std::map<std::string, std::string> words;
  std::map<std::string, std::vector<std::int64_t>> lists;
};

struct WeightBytes {
  const char* data;
  std::size_t bytes;
};

// A network that was put together from a plan: runs its operations in order, on fixed memory.
class Network {
 public:
  // operations and weights outlive the network. The arena is as large as the maps reach.
  // Throws PlanError, naming the operation; OutOfMemoryError.
  Network(const std::vector<OperationRecord>& records,
          const std::map<std::string, WeightBytes>& weights, const Operations& operations,
          std::shared_ptr<ThreadPool> pool);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  // Where a map lies. Throws PlanError for one that reaches beyond the arena.
  char* address(const MapRecord& map) const;

  // Takes other weights in the place of some, of the same names and sizes. Maps stay where they
  // are. Throws PlanError, and then nothing is taken.
  void rebind(const std::map<std::string, WeightBytes>& weights);

  std::size_t arena_bytes() const { return arena_bytes_; }
  std::size_t scratch_bytes() const { return scratch_bytes_; }
  std::size_t size() const { return steps_.size(); }

  // Runs all operations; with `seconds` also writes how long each took.
  void run(double* seconds = nullptr);

  // Writes the mean of each channel of a map of one image, and the squared distances of its values
  // from the mean, added up. Throws PlanError for a map that is none or reaches beyond the arena.
  void moments(const MapRecord& map, double* means, double* deviations);

  // Runs one of them. Throws std::out_of_range.
  void run_one(std::size_t index);

 private:
  const Operations& operations_;
  std::shared_ptr<ThreadPool> pool_;
  std::vector<OperationRecord> records_;
  std::map<std::string, WeightBytes> weights_;
  std::vector<std::function<void(ThreadPool&, const Scratch&)>> steps_;
  char* memory_ = nullptr;
  std::size_t memory_bytes_ = 0, arena_bytes_ = 0, scratch_bytes_ = 0;
  Scratch scratch_;
};

}  // namespace sdengine::nn
