// The runtime on the CPU device, with networks that are Python functions over NumPy arrays. Python
// runs only inside those functions; the interpreter's lock is free otherwise.

#include <pybind11/stl.h>

#include "python/arrays.h"
#include "python/bindings.h"
#include "runtime/cpu_device.h"
#include "runtime/trajectory.h"

namespace py = pybind11;

namespace sdengine::python {
namespace {

using namespace runtime;
using namespace py::literals;

using RegionTuple = std::tuple<std::string, std::size_t, int, int>;
using KeyTuple = std::tuple<std::string, std::size_t, std::size_t, std::size_t, std::string>;
using Shape = std::vector<py::ssize_t>;

// A Python object that any thread may drop, with the interpreter's lock or without.
std::shared_ptr<py::object> share(py::object object) {
  return {new py::object(std::move(object)), [](py::object* held) {
            const py::gil_scoped_acquire locked;
            delete held;
          }};
}

GraphKey key_of(const KeyTuple& given) {
  const auto& [networks, batch, height, width, controls] = given;
  return {networks, batch, height, width, controls};
}

MemoryPool::Sets sets_of(const std::map<std::string, std::vector<RegionTuple>>& given) {
  MemoryPool::Sets sets;
  for (const auto& [name, regions] : given) {
    for (const auto& [region, size_bytes, first_stage, last_stage] : regions) {
      sets[name].push_back({region, size_bytes, first_stage, last_stage});
    }
  }
  return sets;
}

struct CpuPool {
  std::shared_ptr<CpuDevice> device;
  MemoryPool pool;

  CpuPool(const std::map<std::string, std::vector<RegionTuple>>& sets, std::size_t cap_bytes,
          std::size_t limit_bytes)
      : device(std::make_shared<CpuDevice>(limit_bytes)), pool(device, sets_of(sets), cap_bytes) {}

  py::dict report() const {
    const MemoryReport found = pool.report();
    return py::dict("reserved_bytes"_a = found.reserved_bytes,
                    "in_use_bytes"_a = found.in_use_bytes, "peak_bytes"_a = found.peak_bytes,
                    "cap_bytes"_a = found.cap_bytes, "sum_bytes"_a = found.sum_bytes,
                    "num_allocations"_a = device->num_allocations());
  }
};

struct CpuGraphs {
  std::shared_ptr<CpuPool> pool;
  GraphCache cache;

  CpuGraphs(std::shared_ptr<CpuPool> its_pool, std::size_t max_graphs)
      : pool(std::move(its_pool)), cache(pool->device, max_graphs) {}

  py::dict report() const {
    const GraphCacheReport found = unlocked_report();
    return py::dict("num_graphs"_a = found.num_graphs, "num_retired"_a = found.num_retired,
                    "hits"_a = found.hits, "misses"_a = found.misses,
                    "evictions"_a = found.evictions);
  }

 private:
  // Whoever holds the cache's lock may need the interpreter's, to drop a network.
  GraphCacheReport unlocked_report() const {
    const py::gil_scoped_release unlocked;
    return cache.report();
  }
};

TrajectoryShape shape_of(const Shape& latents, std::size_t copies, std::size_t max_steps,
                         std::size_t max_registers) {
  std::size_t num_elements = latents.empty() ? 0 : 1;
  for (const py::ssize_t size : latents) {
    // The product is checked on the way, so that it cannot wrap around to something small.
    if (size <= 0 || num_elements > (std::size_t{1} << 40) / static_cast<std::size_t>(size)) {
      throw py::value_error("shape: is empty, negative or beyond what can be addressed");
    }
    num_elements *= static_cast<std::size_t>(size);
  }
  const auto batch = latents.empty() ? 0 : static_cast<std::size_t>(latents[0]);
  return {num_elements, copies, copies * batch, max_steps, max_registers, DataType::kFloat32};
}

std::vector<RegionTuple> regions(const Shape& latents, std::size_t copies, std::size_t max_steps,
                                 std::size_t max_registers) {
  std::vector<RegionTuple> tuples;
  for (const Region& region :
       trajectory_regions(shape_of(latents, copies, max_steps, max_registers))) {
    tuples.emplace_back(region.name, region.size_bytes, region.first_stage, region.last_stage);
  }
  return tuples;
}

const double* coefficients(const char* name, const py::array& array, const Shape& expected) {
  const double* const values = input<double>(name, array);
  if (Shape(array.shape(), array.shape() + array.ndim()) != expected) {
    std::string text;
    for (const py::ssize_t size : expected)
      text += (text.empty() ? "[" : ",") + std::to_string(size);
    wrong_shape(name, array, text + "]");
  }
  return values;
}

Program program_of(const py::array& t, const py::array& c_in, const py::array& A,
                   const py::array& b, const py::array& d) {
  if (b.ndim() != 2) wrong_shape("b", b, "[K,R]");
  const py::ssize_t K = b.shape(0), R = b.shape(1);
  return {coefficients("t", t, {K}),       coefficients("c_in", c_in, {K}),
          coefficients("A", A, {K, R, R}), coefficients("b", b, {K, R}),
          coefficients("d", d, {K, R}),    static_cast<std::size_t>(K),
          static_cast<std::size_t>(R)};
}

class CpuTrajectory {
 public:
  CpuTrajectory(std::shared_ptr<CpuPool> pool, std::string set, std::shared_ptr<CpuGraphs> graphs,
                const KeyTuple& key, const Shape& shape, std::size_t copies, std::size_t max_steps,
                std::size_t max_registers, py::function network)
      : pool_(std::move(pool)),
        graphs_(std::move(graphs)),
        set_(std::move(set)),
        latents_shape_(shape),
        trajectory_(pool_->pool, set_, shape_of(shape, copies, max_steps, max_registers),
                    graphs_of(*graphs_), key_of(key)),
        network_(wrap(std::move(network), copies)) {}

  void warm_up() {
    const py::gil_scoped_release unlocked;
    trajectory_.warm_up(network_);
  }

  py::array_t<float> run(const py::array& t, const py::array& c_in, const py::array& A,
                         const py::array& b, const py::array& d, double guidance_scale,
                         const py::array& initial, const py::object& noise) {
    const Program program = program_of(t, c_in, A, b, d);
    const float* const start = input<float>("initial", initial);
    if (Shape(initial.shape(), initial.shape() + initial.ndim()) != latents_shape_) {
      wrong_shape("initial", initial, "the trajectory's own shape");
    }
    py::array_t<float> fresh(latents_shape_), latents(latents_shape_);
    const NoiseSource draw = [&](float* target) {
      const py::gil_scoped_acquire locked;
      if (noise.is_none()) throw py::value_error("noise: is None; the program needs noise");
      noise(fresh);
      std::copy_n(fresh.data(), fresh.size(), target);
    };
    float* const result = latents.mutable_data();
    {
      const py::gil_scoped_release unlocked;
      const MemoryPool::Lease lease(pool_->pool, set_);
      const ClearAtEnd clear{progress_.cancel};
      trajectory_.run(program, guidance_scale, network_, start, draw, progress_, result);
    }
    return latents;
  }

  void cancel() { progress_.cancel = true; }
  std::size_t steps_done() const { return progress_.steps_done; }

 private:
  struct ClearAtEnd {
    std::atomic<bool>& flag;
    ~ClearAtEnd() { flag = false; }
  };

  GraphCache& graphs_of(CpuGraphs& graphs) const {
    if (graphs.pool != pool_) throw py::value_error("graphs: belongs to another memory pool");
    return graphs.cache;
  }

  // An array over memory of the pool, which it keeps alive.
  py::array view(const Shape& shape, void* data, bool writeable) const {
    const py::capsule owner(new std::shared_ptr<CpuPool>(pool_), [](void* held) {
      delete static_cast<std::shared_ptr<CpuPool>*>(held);
    });
    py::array_t<float> array(shape, static_cast<float*>(data), owner);
    if (!writeable) array.attr("setflags")("write"_a = false);
    return std::move(array);
  }

  // Graphs may outlive this object, so the network owns all that it touches.
  Network wrap(py::function network, std::size_t copies) const {
    const StepBuffers& buffers = trajectory_.buffers();
    Shape rows = latents_shape_;
    rows[0] *= static_cast<py::ssize_t>(copies);
    const auto arguments = share(
        py::make_tuple(view(rows, buffers.sample, false), view({rows[0]}, buffers.timestep, false),
                       view(rows, const_cast<void*>(buffers.noise_pred), true)));
    const auto function = share(std::move(network));
    return [device = pool_->device, function, arguments](RawHandle stream) {
      device->enqueue(
          [function, arguments] {
            const py::gil_scoped_acquire locked;
            (*function)(*py::reinterpret_borrow<py::tuple>(*arguments));
          },
          stream);
    };
  }

  std::shared_ptr<CpuPool> pool_;
  std::shared_ptr<CpuGraphs> graphs_;
  const std::string set_;
  const Shape latents_shape_;
  Trajectory trajectory_;
  Network network_;
  Progress progress_;
};

}  // namespace

void bind_runtime(py::module_& module) {
  module.def("trajectory_regions", &regions, "shape"_a, "copies"_a, "max_steps"_a,
             "max_registers"_a, "Tell which regions a trajectory needs in its memory pool.");
  py::class_<CpuPool, std::shared_ptr<CpuPool>>(
      module, "MemoryPool", "One arena of host memory, planned for sets of regions.")
      .def(py::init<const std::map<std::string, std::vector<RegionTuple>>&, std::size_t,
                    std::size_t>(),
           "sets"_a, "cap_bytes"_a = 0, "limit_bytes"_a = 0)
      .def(
          "address",
          [](const CpuPool& pool, const std::string& set, const std::string& region) {
            return reinterpret_cast<std::uintptr_t>(pool.pool.address(set, region));
          },
          "set"_a, "region"_a, "Tell where a region lies.")
      .def("report", &CpuPool::report, "Tell the bytes reserved, in use, at the peak and capped.");
  py::class_<CpuGraphs, std::shared_ptr<CpuGraphs>>(module, "GraphCache",
                                                    "The step graphs that were used last.")
      .def(py::init<std::shared_ptr<CpuPool>, std::size_t>(), "pool"_a, "max_graphs"_a)
      .def(
          "clear", [](CpuGraphs& graphs) { graphs.cache.clear(); }, "Drop every graph.",
          py::call_guard<py::gil_scoped_release>())
      .def("report", &CpuGraphs::report, "Tell the graphs held and the hits, misses, evictions.");
  py::class_<CpuTrajectory>(module, "Trajectory", "Sampler programs run without Python between.")
      .def(py::init<std::shared_ptr<CpuPool>, std::string, std::shared_ptr<CpuGraphs>,
                    const KeyTuple&, const Shape&, std::size_t, std::size_t, std::size_t,
                    py::function>(),
           "pool"_a, "set"_a, "graphs"_a, "key"_a, "shape"_a, "copies"_a, "max_steps"_a,
           "max_registers"_a, "network"_a)
      .def("warm_up", &CpuTrajectory::warm_up, "Capture the step ahead of the first image.")
      .def("run", &CpuTrajectory::run, "t"_a.noconvert(), "c_in"_a.noconvert(), "A"_a.noconvert(),
           "b"_a.noconvert(), "d"_a.noconvert(), "guidance_scale"_a, "initial"_a.noconvert(),
           "noise"_a = py::none(), "Run a program; return the last r[0].")
      .def("cancel", &CpuTrajectory::cancel,
           "End the run before its next evaluation, or the next run if none is going on.")
      .def_property_readonly("steps_done", &CpuTrajectory::steps_done);
}

}  // namespace sdengine::python
