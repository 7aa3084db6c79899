#pragma once

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "python/arrays.h"
#include "runtime/graph_cache.h"
#include "runtime/memory_pool.h"

// What the bindings of the runtime share.
namespace sdengine::python {

using Shape = std::vector<pybind11::ssize_t>;
using KeyTuple = std::tuple<std::string, std::size_t, std::size_t, std::size_t, std::string>;

inline runtime::GraphKey key_of(const KeyTuple& given) {
  const auto& [networks, batch, height, width, controls] = given;
  return {networks, batch, height, width, controls};
}

inline runtime::DataType type_of(const std::string& dtype) {
  if (dtype == "float32") return runtime::DataType::kFloat32;
  if (dtype == "float16") return runtime::DataType::kFloat16;
  if (dtype == "bfloat16") return runtime::DataType::kBFloat16;
  throw pybind11::value_error("dtype: " + dtype +
                              " is not accepted; expected float32, float16 or bfloat16");
}

// A Python object that any thread may drop, with the interpreter's lock or without.
inline std::shared_ptr<pybind11::object> share(pybind11::object object) {
  return {new pybind11::object(std::move(object)), [](pybind11::object* held) {
            const pybind11::gil_scoped_acquire locked;
            delete held;
          }};
}

struct SharedGraphs {
  std::shared_ptr<runtime::MemoryPool> pool;
  runtime::GraphCache cache;

  SharedGraphs(std::shared_ptr<runtime::MemoryPool> its_pool, std::size_t max_graphs)
      : pool(std::move(its_pool)), cache(pool->device(), max_graphs) {}
};

// The memory of a region from an offset on. Throws ValueError where it has fewer bytes.
inline unsigned char* region_bytes(const runtime::MemoryPool& pool, const std::string& set,
                                   const std::string& region, std::size_t offset_bytes,
                                   std::size_t size_bytes) {
  auto* const address = static_cast<unsigned char*>(pool.address(set, region));
  for (const runtime::Region& planned : pool.plan(set).regions) {
    if (planned.name == region &&
        (offset_bytes > planned.size_bytes || size_bytes > planned.size_bytes - offset_bytes)) {
      throw pybind11::value_error(
          "region " + region + ": has " + std::to_string(planned.size_bytes) + " bytes, not " +
          std::to_string(size_bytes) + " from " + std::to_string(offset_bytes));
    }
  }
  return address + offset_bytes;
}

void bind_program_runner(pybind11::module_& module);

}  // namespace sdengine::python
