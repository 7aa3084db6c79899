// The runtime's devices, memory, graphs and streams. Python names memory by set and region, and
// what it copies is checked against the region's size.

#include "cpu/device.h"
#include "cuda/device.h"
#include "python/bindings.h"
#include "python/pixel_batch.h"

namespace py = pybind11;

namespace sdengine::python {
namespace {

using namespace runtime;
using cpu::CpuDevice;
using namespace py::literals;

using RegionTuple = std::tuple<std::string, std::size_t, int, int>;

std::vector<Region> regions_of(const std::vector<RegionTuple>& given) {
  std::vector<Region> regions;
  for (const auto& [name, size_bytes, first_stage, last_stage] : given) {
    regions.push_back({name, size_bytes, first_stage, last_stage});
  }
  return regions;
}

MemoryPool::Sets sets_of(const std::map<std::string, std::vector<RegionTuple>>& given) {
  MemoryPool::Sets sets;
  for (const auto& [name, regions] : given) sets[name] = regions_of(regions);
  return sets;
}

std::shared_ptr<MemoryPool> make_pool(const std::map<std::string, std::vector<RegionTuple>>& sets,
                                      std::size_t cap_bytes, std::shared_ptr<Device> device) {
  if (device == nullptr) device = std::make_shared<CpuDevice>();
  return std::make_shared<MemoryPool>(std::move(device), sets_of(sets), cap_bytes);
}

void check_images(std::size_t count, std::size_t height, std::size_t width) {
  // So that no product of them wraps.
  constexpr std::size_t kMost = std::size_t{1} << 16;
  for (const auto& [name, value] :
       {std::pair{"count", count}, std::pair{"height", height}, std::pair{"width", width}}) {
    if (value == 0 || value > kMost) {
      throw py::value_error(std::string(name) + ": " + std::to_string(value) +
                            " is not accepted; expected 1 to " + std::to_string(kMost));
    }
  }
}

py::dict ledger_of(const CpuDevice& device) {
  const cpu::Ledger& ledger = device.ledger();
  return py::dict(
      "uploads"_a = ledger.uploads.load(), "uploaded_bytes"_a = ledger.uploaded_bytes.load(),
      "downloads"_a = ledger.downloads.load(),
      "downloaded_bytes"_a = ledger.downloaded_bytes.load(), "fills"_a = ledger.fills.load(),
      "kernels"_a = ledger.kernels.load(), "networks"_a = ledger.networks.load(),
      "graph_launches"_a = ledger.graph_launches.load(), "waits"_a = ledger.waits.load());
}

// The processor's device runs a Python function where a GPU would run a network.
void enqueue(CpuDevice& device, RawHandle stream, py::function function) {
  const auto shared = share(std::move(function));
  device.enqueue(
      [shared] {
        const py::gil_scoped_acquire locked;
        (*shared)();
      },
      stream);
}

void bind_devices(py::module_& module) {
  py::class_<Device, std::shared_ptr<Device>>(module, "Device", "Where the runtime's work runs.")
      .def_property_readonly("name", &Device::name)
      .def_property_readonly("num_allocations", &Device::num_allocations)
      .def("make_current", &Device::make_current, py::call_guard<py::gil_scoped_release>(),
           "Make it this thread's current GPU, for libraries that ask CUDA for that.")
      .def(
          "memory_info",
          [](const Device& device) {
            const MemoryInfo info = device.memory_info();
            return py::make_tuple(info.free_bytes, info.total_bytes);
          },
          "Tell the bytes that are free, and all.");
  py::class_<CpuDevice, Device, std::shared_ptr<CpuDevice>>(
      module, "CpuDevice", "The processor, refusing what a GPU refuses during capture.")
      .def(py::init<std::size_t>(), "limit_bytes"_a = 0)
      .def("ledger", &ledger_of,
           "Count what it did since it was made: copies, bytes, kernels, launches, waits.")
      .def("enqueue", &enqueue, "stream"_a, "function"_a,
           "Queue a function on one of its streams, or record it where that captures.");
  module.def("cuda_device", &cuda::make_device, "index"_a = 0, "Make a device of a GPU.");
}

void bind_memory(py::module_& module) {
  py::class_<MemoryPool, std::shared_ptr<MemoryPool>>(
      module, "MemoryPool", "One arena of a device's memory, planned for sets of regions.")
      .def(py::init(&make_pool), "sets"_a, "cap_bytes"_a = 0, "device"_a = nullptr)
      .def_property_readonly("device", [](const MemoryPool& pool) { return pool.device(); })
      .def(
          "address",
          [](const MemoryPool& pool, const std::string& set, const std::string& region) {
            return reinterpret_cast<std::uintptr_t>(pool.address(set, region));
          },
          "set"_a, "region"_a, "Tell where a region lies.");
  module.def(
      "plan_regions",
      [](const std::vector<RegionTuple>& regions, std::size_t alignment) {
        const MemoryPlan plan = plan_memory(regions_of(regions), alignment);
        return py::make_tuple(plan.size_bytes, plan.offsets);
      },
      "regions"_a, "alignment"_a = kAlignment,
      "Lay regions out in an arena; return its bytes and where each region begins.");
}

}  // namespace

void bind_runtime(py::module_& module) {
  bind_devices(module);
  bind_memory(module);
  py::class_<SharedGraphs, std::shared_ptr<SharedGraphs>>(module, "GraphCache",
                                                          "The step graphs that were used last.")
      .def(py::init<std::shared_ptr<MemoryPool>, std::size_t>(), "pool"_a, "max_graphs"_a)
      .def(
          "drop", [](SharedGraphs& graphs, const KeyTuple& key) { graphs.cache.drop(key_of(key)); },
          "key"_a, "Drop one graph, if it is there.", py::call_guard<py::gil_scoped_release>());
  py::class_<Queue, std::shared_ptr<Queue>>(module, "Queue", "A stream over a pool's memory.")
      .def(py::init<std::shared_ptr<MemoryPool>>(), "pool"_a)
      .def_property_readonly("stream", &Queue::handle, "As TensorRT takes it: a cudaStream_t.")
      .def("synchronize", &Queue::synchronize, "Wait for everything queued.")
      .def("upload", &Queue::upload, "set"_a, "region"_a, "array"_a.noconvert(),
           "Queue a copy of an array to a region's begin.")
      .def("clear", &Queue::clear, "set"_a, "region"_a, "Queue zeros for a whole region.")
      .def("download", &Queue::download, "set"_a, "region"_a, "array"_a.noconvert(),
           "Copy a region's begin to an array, and wait for it.")
      .def("scale", &Queue::scale, "set"_a, "source"_a, "first"_a, "count"_a, "factor"_a,
           "target"_a, "dtype"_a, "Queue target = factor * source[first:first+count].")
      .def(
          "pixel_batch",
          [](std::shared_ptr<Queue> queue, std::string set, const std::string& flag,
             std::size_t count, std::size_t height, std::size_t width) {
            check_images(count, height, width);
            return std::make_unique<PixelBatch>(std::move(queue), std::move(set), flag, count,
                                                height, width);
          },
          "set"_a, "flag"_a, "count"_a, "height"_a, "width"_a,
          "Begin to turn images into pixels, one after the other, with one wait for all.");
  py::class_<PixelBatch>(module, "PixelBatch", "The pixels of some images, on their way.")
      .def("add", &PixelBatch::add, "images"_a, "dtype"_a, "pixels"_a,
           "Queue the next image, of -1 to 1, from a region by way of another.")
      .def("finish", &PixelBatch::finish, "Wait; return [count,H,W,3] uint8.");
  bind_program_runner(module);
}

}  // namespace sdengine::python
