// Sampler programs on a device. Python runs when a step is recorded and where a network cannot be
// captured; the interpreter's lock is free otherwise.

#include <algorithm>
#include <cstddef>
#include <optional>

#include "python/programs.h"
#include "python/queue.h"
#include "runtime/program_runner.h"

namespace py = pybind11;

namespace sdengine::python {
namespace {

using namespace runtime;
using namespace py::literals;

using RegionTuple = std::tuple<std::string, std::size_t, int, int>;

TrajectoryShape shape_of(const Shape& latents, std::size_t copies, std::size_t max_steps,
                         std::size_t max_registers, const std::string& dtype,
                         std::optional<std::size_t> num_timesteps) {
  std::size_t num_elements = latents.empty() ? 0 : 1;
  for (const py::ssize_t size : latents) {
    // The product is checked on the way, so that it cannot wrap around to something small.
    if (size <= 0 || num_elements > (std::size_t{1} << 40) / static_cast<std::size_t>(size)) {
      throw py::value_error("shape: is empty, negative or beyond what can be addressed");
    }
    num_elements *= static_cast<std::size_t>(size);
  }
  const auto batch = latents.empty() ? 0 : static_cast<std::size_t>(latents[0]);
  return {num_elements, copies,        num_timesteps.value_or(copies * batch),
          max_steps,    max_registers, type_of(dtype)};
}

std::vector<RegionTuple> regions(const Shape& latents, std::size_t copies, std::size_t max_steps,
                                 std::size_t max_registers, const std::string& dtype,
                                 std::optional<std::size_t> num_timesteps) {
  std::vector<RegionTuple> tuples;
  for (const Region& region : trajectory_regions(
           shape_of(latents, copies, max_steps, max_registers, dtype, num_timesteps))) {
    tuples.emplace_back(region.name, region.size_bytes, region.first_stage, region.last_stage);
  }
  return tuples;
}

// The collector may free memory of the device or drop graphs, which must not happen in a capture.
class WithoutCollection {
 public:
  WithoutCollection() : was_enabled_(PyGC_Disable() != 0) {}
  ~WithoutCollection() {
    if (was_enabled_) PyGC_Enable();
  }
  WithoutCollection(const WithoutCollection&) = delete;
  WithoutCollection& operator=(const WithoutCollection&) = delete;

 private:
  const bool was_enabled_;
};

class SharedRunner {
 public:
  SharedRunner(std::shared_ptr<MemoryPool> pool, std::string set,
               std::shared_ptr<SharedGraphs> graphs, const KeyTuple& key, const Shape& shape,
               std::size_t copies, std::size_t max_steps, std::size_t max_registers,
               py::function network, const std::string& dtype,
               std::optional<std::size_t> num_timesteps, bool captured,
               const std::shared_ptr<Queue>& queue)
      : pool_(std::move(pool)),
        graphs_(std::move(graphs)),
        queue_(queue),
        set_(std::move(set)),
        latents_shape_(shape),
        runner_(*pool_, set_,
                shape_of(shape, copies, max_steps, max_registers, dtype, num_timesteps),
                graphs_of(*graphs_), key_of(key), captured ? Launch::kGraph : Launch::kPlain,
                queue_ == nullptr ? nullptr : queue_->stream()),
        network_(wrap(std::move(network))) {
    num_elements_ = 1;
    for (const py::ssize_t size : shape) num_elements_ *= static_cast<std::size_t>(size);
  }

  void warm_up() {
    const py::gil_scoped_release unlocked;
    runner_.warm_up(network_);
  }

  void start(const py::array& t, const py::array& c_in, const py::array& A, const py::array& b,
             const py::array& d, double guidance_scale, const py::array& initial) {
    HeldProgram program(t, c_in, A, b, d, guidance_scale);
    const float* const first = input<float>("initial", initial);
    if (Shape(initial.shape(), initial.shape() + initial.ndim()) != latents_shape_) {
      wrong_shape("initial", initial, "the trajectory's own shape");
    }
    cancel_ = false;
    next_ = 0;
    program_.emplace(std::move(program));
    const py::gil_scoped_release unlocked;
    const MemoryPool::Lease lease(*pool_, set_);
    runner_.start(program_->view, guidance_scale, first);
  }

  void advance(std::size_t count, const std::optional<Generators>& noise) {
    const HeldProgram& program = started();
    const StepNoise draw = step_noise(noise);
    const std::size_t end = next_ + count;
    const py::gil_scoped_release unlocked;
    const MemoryPool::Lease lease(*pool_, set_);
    runner_.advance(program.view, next_, end, network_, draw, cancel_);
    next_ = end;
  }

  py::array_t<float> read() {
    const HeldProgram& program = started();
    py::array_t<float> latents(latents_shape_);
    float* const target = latents.mutable_data();
    {
      const py::gil_scoped_release unlocked;
      const MemoryPool::Lease lease(*pool_, set_);
      runner_.read(program.view.num_steps, target);
    }
    return latents;
  }

  py::array_t<float> save() {
    const std::size_t R = started().view.num_registers;
    Shape shape = latents_shape_;
    shape.insert(shape.begin(), static_cast<py::ssize_t>(R));
    py::array_t<float> registers(shape);
    float* const target = registers.mutable_data();
    const py::gil_scoped_release unlocked;
    const MemoryPool::Lease lease(*pool_, set_);
    runner_.save(R, target);
    return registers;
  }

  void resume(const py::array& registers, std::optional<std::size_t> next) {
    const HeldProgram& program = started();
    const float* const values = input<float>("registers", registers);
    if (static_cast<std::size_t>(registers.size()) != program.view.num_registers * num_elements_) {
      wrong_shape("registers", registers, "what save gave");
    }
    const py::gil_scoped_release unlocked;
    const MemoryPool::Lease lease(*pool_, set_);
    runner_.resume(program.view, program.guidance_scale, values, next.value_or(next_));
    next_ = next.value_or(next_);
  }

  void cancel() { cancel_ = true; }

  std::size_t steps_done() { return runner_.steps_done(); }
  const std::string& why_not_captured() const { return runner_.why_not_captured(); }

 private:
  const HeldProgram& started() const {
    if (!program_) throw py::value_error("start: a program is started first");
    return *program_;
  }

  GraphCache& graphs_of(SharedGraphs& graphs) const {
    if (graphs.pool != pool_) throw py::value_error("graphs: belongs to another memory pool");
    return graphs.cache;
  }

  // Graphs of the CPU device may outlive this object, so the network owns all that it touches.
  static Denoiser wrap(py::function network) {
    return [function = share(std::move(network))](RawHandle stream) {
      const py::gil_scoped_acquire locked;
      const WithoutCollection uncollected;
      try {
        (*function)(stream);
      } catch (const py::error_already_set& error) {
        // What the device answered is the device's error here too.
        if (error.type().is(py::module_::import("sdengine.errors").attr("DeviceError"))) {
          throw DeviceError(py::str(error.value()));
        }
        throw;
      }
    };
  }

  // torch's CPU stream is one sequence, which the host draws; its CUDA stream is counted, and every
  // value can be computed where it is needed.
  StepNoise step_noise(const std::optional<Generators>& noise) {
    if (!noise.has_value()) return {};
    const Generators& generators = *noise;
    const auto batch = static_cast<std::size_t>(latents_shape_[0]);
    if (generators.size() != batch) {
      throw py::value_error("noise: has " + std::to_string(generators.size()) + " generators for " +
                            std::to_string(batch) + " images");
    }
    const std::size_t count = num_elements_ / batch;
    StepNoise found;
    if (has<SharedMersenne*>(generators)) {
      found.draw = [generators, count](float* values) {
        for (std::size_t i = 0; i < generators.size(); ++i) {
          if (auto* const* one = std::get_if<SharedMersenne*>(&generators[i])) {
            (*one)->draw(values + i * count, count);
          }
        }
      };
    }
    if (has<SharedPhilox*>(generators)) {
      found.queue = [this, generators, count](float* target, RawHandle stream) {
        for (std::size_t i = 0; i < generators.size(); ++i) {
          if (auto* const* one = std::get_if<SharedPhilox*>(&generators[i])) {
            (*one)->with([&](cpu::PhiloxNormal& normal) {
              pool_->device()->draw_philox(normal.seed(), normal.take(), target + i * count, count,
                                           stream);
            });
          }
        }
      };
    }
    return found;
  }

  template <typename Kind>
  static bool has(const Generators& generators) {
    return std::any_of(generators.begin(), generators.end(), [](const auto& generator) {
      return std::holds_alternative<Kind>(generator);
    });
  }

  std::shared_ptr<MemoryPool> pool_;
  std::shared_ptr<SharedGraphs> graphs_;
  std::shared_ptr<Queue> queue_;
  const std::string set_;
  const Shape latents_shape_;
  std::size_t num_elements_ = 0;
  ProgramRunner runner_;
  Denoiser network_;
  std::atomic<bool> cancel_{false};
  std::optional<HeldProgram> program_;
  std::size_t next_ = 0;
};

}  // namespace

// Where the region "table" holds what networks may read of a step in device memory.
py::dict step_layout() {
  return py::dict("state_bytes"_a = sizeof(StepState), "row_bytes"_a = offsetof(StepState, row),
                  "row_doubles"_a = kRowDoubles, "timestep_double"_a = kTimestepDouble,
                  "noise_slot_double"_a = kNoiseSlotDouble, "noise_slots"_a = kNoiseSlots,
                  "max_registers"_a = kMaxRegisters);
}

void bind_program_runner(py::module_& module) {
  module.def("step_layout", &step_layout,
             "Tell where a program's table holds the next row's number and each row's timestep.");
  module.def("trajectory_regions", &regions, "shape"_a, "copies"_a, "max_steps"_a,
             "max_registers"_a, "dtype"_a = "float32", "num_timesteps"_a = py::none(),
             "Tell which regions a trajectory needs in its memory pool.");
  py::class_<SharedRunner>(module, "ProgramRunner",
                           "Runs sampler programs on a device without Python between the steps.")
      .def(py::init<std::shared_ptr<MemoryPool>, std::string, std::shared_ptr<SharedGraphs>,
                    const KeyTuple&, const Shape&, std::size_t, std::size_t, std::size_t,
                    py::function, const std::string&, std::optional<std::size_t>, bool,
                    const std::shared_ptr<Queue>&>(),
           "pool"_a, "set"_a, "graphs"_a, "key"_a, "shape"_a, "copies"_a, "max_steps"_a,
           "max_registers"_a, "network"_a, "dtype"_a = "float32", "num_timesteps"_a = py::none(),
           "captured"_a = true, "queue"_a = nullptr)
      .def("warm_up", &SharedRunner::warm_up, "Capture the step ahead of the first image.")
      .def("start", &SharedRunner::start, "t"_a.noconvert(), "c_in"_a.noconvert(),
           "A"_a.noconvert(), "b"_a.noconvert(), "d"_a.noconvert(), "guidance_scale"_a,
           "initial"_a.noconvert(), "Bring a program and r[0] to the device.")
      .def("advance", &SharedRunner::advance, "count"_a, "noise"_a = py::none(),
           "Queue the next evaluations. noise: a generator for each image of the batch.")
      .def("read", &SharedRunner::read, "Wait for what is queued; return r[0].")
      .def("save", &SharedRunner::save, "Wait; return all registers, for `resume`.")
      .def("resume", &SharedRunner::resume, "registers"_a.noconvert(), "next"_a = py::none(),
           "Bring the program and saved registers to the device. next: the evaluation that they "
           "are before, if they are another runner's.")
      .def("steps_done", &SharedRunner::steps_done, py::call_guard<py::gil_scoped_release>(),
           "Tell how many evaluations have run, exactly, from any thread; waits for nothing.")
      .def_property_readonly("why_not_captured", &SharedRunner::why_not_captured,
                             "Why no graph could be captured in a run; empty where it was not so.")
      .def("cancel", &SharedRunner::cancel,
           "End `advance`, in another thread, before its next evaluation.");
}

}  // namespace sdengine::python
