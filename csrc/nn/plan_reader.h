#pragma once

#include <map>
#include <string>

#include "nn/network.h"

namespace sdengine::nn {

// How far maps reach into the arena.
struct Extent {
  std::size_t bytes = 0;
};

// Checks a map by itself; its data is the offset from the arena's start.
// Throws PlanError, with `what` in front.
Map read_map(const MapRecord& record, const std::string& what, Extent& extent);

// Turns one record into arguments, or throws PlanError that names it and says what is wrong.
class OperationReader {
 public:
  OperationReader(const OperationRecord& record, const std::map<std::string, WeightBytes>& weights,
                  Extent& extent)
      : record_(record), weights_(weights), extent_(extent) {}

  const std::string& kind() const { return record_.kind; }
  bool has(const std::string& map) const { return record_.maps.count(map) > 0; }
  [[noreturn]] void refuse(const std::string& problem) const;

#define SDENGINE_READER(name, Arguments) Arguments name() const;
  SDENGINE_OPERATIONS(SDENGINE_READER)
#undef SDENGINE_READER
  SinusoidArguments sinusoid() const;
  SelectArguments select() const;
  CopyArguments copy() const;

  Map per_image(const Map& out) const;
  Map like(const std::string& role, const Map& other) const;

 private:
  Map map(const std::string& role) const;
  Map floats(const std::string& role) const;
  const WeightBytes& weight(const std::string& role, std::size_t bytes) const;
  const float* vector(const std::string& role, std::size_t count) const;
  Panels panels(int n, int k, Type type) const;
  Wraps wraps() const;
  Epilogue epilogue(int n) const;
  Activation activation_word(bool gated) const;
  double number(const std::string& role) const;
  int integer(const std::string& role, int least, int most) const;
  void require(bool holds, const std::string& problem) const;
  void require_same(const Map& a, const Map& b, const std::string& names) const;
  void check_copy(const std::vector<std::int64_t>& strides, const int* sizes, std::int64_t offset,
                  std::size_t size) const;

  const OperationRecord& record_;
  const std::map<std::string, WeightBytes>& weights_;
  Extent& extent_;
};

}  // namespace sdengine::nn
