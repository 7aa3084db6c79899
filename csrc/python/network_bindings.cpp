// Networks of the native CPU runtime. A plan comes in as dictionaries and is checked by the
// network.

#include <pybind11/stl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <utility>

#include "cpu/network_steps.h"
#include "nn/instruction_sets.h"
#include "nn/network.h"
#include "nn/packing.h"
#include "python/bindings.h"
#include "python/programs.h"

namespace py = pybind11;

namespace sdengine::python {
namespace {

using nn::MapRecord;
using nn::OperationRecord;

MapRecord to_map(const py::dict& map) {
  MapRecord record;
  record.offset = map["offset"].cast<std::int64_t>();
  record.type = map["type"].cast<std::string>();
  record.images = map["images"].cast<std::int64_t>();
  record.height = map["height"].cast<std::int64_t>();
  record.width = map["width"].cast<std::int64_t>();
  record.channels = map["channels"].cast<std::int64_t>();
  record.stride = map["stride"].cast<std::int64_t>();
  return record;
}

OperationRecord to_record(const py::dict& operation) {
  OperationRecord record;
  record.kind = operation["kind"].cast<std::string>();
  record.name = operation["name"].cast<std::string>();
  for (const auto& [role, map] : operation["maps"].cast<py::dict>()) {
    record.maps[role.cast<std::string>()] = to_map(map.cast<py::dict>());
  }
  record.weights = operation["weights"].cast<std::map<std::string, std::string>>();
  record.numbers = operation["numbers"].cast<std::map<std::string, double>>();
  record.words = operation["words"].cast<std::map<std::string, std::string>>();
  record.lists = operation["lists"].cast<std::map<std::string, std::vector<std::int64_t>>>();
  return record;
}

std::map<std::string, nn::WeightBytes> to_bytes(const py::dict& weights) {
  std::map<std::string, nn::WeightBytes> bytes;
  for (const auto& [name, array] : weights) {
    const auto weight = array.cast<py::array>();
    if ((weight.flags() & py::array::c_style) == 0) {
      throw py::value_error(name.cast<std::string>() + ": is not C-contiguous");
    }
    bytes[name.cast<std::string>()] = {static_cast<const char*>(weight.data()),
                                       static_cast<std::size_t>(weight.nbytes())};
  }
  return bytes;
}

// A view of a network's input, and what is copied there.
using InputPair = std::pair<py::array, py::array>;

std::vector<cpu::InputCopy> to_copies(std::vector<InputPair>& inputs) {
  std::vector<cpu::InputCopy> copies;
  for (auto& [view, given] : inputs) {
    const bool in_rows = (view.flags() & given.flags() & py::array::c_style) != 0;
    if (!in_rows || !view.writeable() || !view.dtype().equal(given.dtype()) ||
        view.nbytes() != given.nbytes()) {
      throw py::value_error("inputs: each is a view and as many values of its type, C-contiguous");
    }
    copies.push_back({static_cast<char*>(view.mutable_data()),
                      static_cast<const char*>(given.data()),
                      static_cast<std::size_t>(view.nbytes())});
  }
  return copies;
}

cpu::StepMaps to_step_maps(std::vector<InputPair>& inputs, py::array& sample, py::array& timestep,
                           const py::array& noise_pred, const py::array& registers) {
  if (registers.ndim() < 2 || registers.size() == 0) {
    wrong_shape("registers", registers, "[R,B,...]");
  }
  const py::ssize_t num_elements = registers.size() / registers.shape(0);
  const py::ssize_t copies = sample.size() / num_elements;
  if (copies < 1 || copies > 2 || sample.size() != copies * num_elements) {
    wrong_shape("sample", sample, "as many values as the latents have, once or twice");
  }
  if (noise_pred.size() != sample.size()) wrong_shape("noise_pred", noise_pred, "sample's");
  return {to_copies(inputs),
          output<float>("sample", sample),
          output<float>("timestep", timestep),
          input<float>("noise_pred", noise_pred),
          static_cast<std::size_t>(num_elements),
          static_cast<std::size_t>(copies),
          static_cast<std::size_t>(timestep.size())};
}

void check_signals() {
  const py::gil_scoped_acquire locked;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// Holds the weights that the network reads.
class PyNetwork {
 public:
  PyNetwork(const py::list& operations, const py::dict& weights, int threads,
            const std::string& isa) {
    std::vector<OperationRecord> records;
    for (const py::handle& operation : operations) {
      records.push_back(to_record(operation.cast<py::dict>()));
    }
    network_ = std::make_unique<nn::Network>(records, to_bytes(weights), nn::operations_for(isa),
                                             nn::ThreadPool::shared(threads));
    for (const auto& [name, array] : weights) weights_[name] = array;
  }

  void rebind(const py::dict& weights) {
    network_->rebind(to_bytes(weights));
    for (const auto& [name, array] : weights) weights_[name] = array;
  }

  // [images,height,width,channels] on the network's own memory; bf16 as its bits.
  static py::array view(const py::object& self, const py::dict& map) {
    const MapRecord record = to_map(map);
    char* data = self.cast<PyNetwork&>().network_->address(record);
    const auto dtype = record.type == "float32"    ? py::dtype::of<float>()
                       : record.type == "bfloat16" ? py::dtype::of<std::uint16_t>()
                                                   : py::dtype::of<std::int64_t>();
    const py::ssize_t item = dtype.itemsize(), pixel = record.stride * item;
    const std::vector<py::ssize_t> shape = {record.images, record.height, record.width,
                                            record.channels};
    const std::vector<py::ssize_t> strides = {record.height * record.width * pixel,
                                              record.width * pixel, pixel, item};
    return py::array(dtype, shape, strides, data, self);
  }

  void run() {
    const py::gil_scoped_release release;
    network_->run();
  }

  void run_one(std::size_t index) {
    const py::gil_scoped_release release;
    network_->run_one(index);
  }

  std::vector<double> run_timed() {
    std::vector<double> seconds(network_->size());
    const py::gil_scoped_release release;
    network_->run(seconds.data());
    return seconds;
  }

  py::tuple run_steps(std::vector<InputPair> inputs, py::array sample, py::array timestep,
                      const py::array& noise_pred, py::array registers, const py::array& t,
                      const py::array& c_in, const py::array& A, const py::array& b,
                      const py::array& d, double guidance_scale, std::size_t first,
                      std::size_t count, const Generators& noise) {
    const HeldProgram program(t, c_in, A, b, d, guidance_scale);
    const cpu::StepMaps maps = to_step_maps(inputs, sample, timestep, noise_pred, registers);
    float* const values = output<float>("registers", registers);
    const auto batch = static_cast<std::size_t>(registers.shape(1));
    if (static_cast<std::size_t>(registers.shape(0)) != program.view.num_registers) {
      wrong_shape("registers", registers, "as many as the program has");
    }
    if (noise.size() != batch) throw py::value_error("noise: expected a generator an image");
    if (first > program.view.num_steps || count > program.view.num_steps - first) {
      throw py::value_error("count: the program has " + std::to_string(program.view.num_steps) +
                            " evaluations");
    }
    std::vector<float> drawn(maps.num_elements);
    const std::size_t of_one = maps.num_elements / batch;
    const auto draw = [&](float* target) {
      for (std::size_t i = 0; i < batch; ++i) {
        std::visit([&](auto* one) { one->draw(target + i * of_one, of_one); }, noise[i]);
      }
    };
    cpu::StepsRun done;
    {
      const py::gil_scoped_release release;
      done = cpu::run_steps(*network_, maps, program.view, first, first + count, guidance_scale,
                            values, drawn.data(), draw, check_signals);
    }
    return py::make_tuple(done.count, done.finite, done.network_ns);
  }

  py::tuple run_decoder(const py::array& latents, double scale, py::array sample,
                        const py::array& images) {
    if (images.ndim() != 4 || images.shape(0) != 1 || images.shape(1) != 3) {
      wrong_shape("images", images, "[1,3,H,W]");
    }
    if (latents.ndim() < 1 || latents.size() != latents.shape(0) * sample.size()) {
      wrong_shape("latents", latents, "[B,...] of as many values as sample has");
    }
    const float* const source = input<float>("latents", latents);
    const py::ssize_t batch = latents.shape(0), height = images.shape(2), width = images.shape(3);
    const cpu::DecoderMaps maps{output<float>("sample", sample), input<float>("images", images),
                                static_cast<std::size_t>(sample.size()),
                                static_cast<std::size_t>(height * width)};
    py::array_t<std::uint8_t> pixels({batch, height, width, py::ssize_t{3}});
    std::uint8_t* const target = pixels.mutable_data();
    cpu::StepsRun done;
    {
      const py::gil_scoped_release release;
      done = cpu::run_decoder(*network_, maps, source, static_cast<std::size_t>(batch),
                              static_cast<float>(scale), target, check_signals);
    }
    return py::make_tuple(pixels, done.finite, done.network_ns);
  }

  py::array_t<double> moments(const py::dict& map) {
    const MapRecord record = to_map(map);
    if (record.channels < 1 || record.channels > (1 << 24)) {
      throw py::value_error("channels: " + std::to_string(record.channels));
    }
    py::array_t<double> found({py::ssize_t{2}, static_cast<py::ssize_t>(record.channels)});
    double* values = found.mutable_data();
    const py::gil_scoped_release release;
    network_->moments(record, values, values + record.channels);
    return found;
  }

  std::size_t arena_bytes() const { return network_->arena_bytes(); }
  std::size_t scratch_bytes() const { return network_->scratch_bytes(); }

 private:
  py::dict weights_;
  std::unique_ptr<nn::Network> network_;
};

nn::Kind to_kind(const std::string& name) {
  if (name == "float32") return nn::Kind::Float32;
  if (name == "bfloat16") return nn::Kind::BFloat16;
  if (name == "int16") return nn::Kind::Int16;
  if (name == "int8") return nn::Kind::Int8;
  throw py::value_error("kind: '" + name + "' is not one of float32, bfloat16, int16, int8");
}

// Multiplications and additions a second of all threads: the best of a few short spans.
double peak_rate(const std::string& kind_name, int threads, const std::string& isa) {
  const nn::Kind kind = to_kind(kind_name);
  const nn::Operations& operations = nn::operations_for(isa);
  const auto pool = nn::ThreadPool::shared(threads);
  const py::gil_scoped_release release;
  const auto held = pool->hold();
  constexpr std::int64_t kRounds = 500'000;
  std::atomic<std::int64_t> done{0};
  auto work = [&](int) { done += operations.peak(kind, kRounds); };
  double best = 0;
  for (int span = 0; span < 7; ++span) {
    done = 0;
    const auto started = std::chrono::steady_clock::now();
    pool->run([](void* context, int part) { (*static_cast<decltype(work)*>(context))(part); },
              &work);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
    best = std::max(best, static_cast<double>(done) / seconds.count());
  }
  return best;
}

// What a tensor of a packing holds, and the terms that are added to it.
struct HeldSource {
  py::array data;
  std::vector<py::array> held;
  std::vector<nn::Term> terms;
};

const float* thin(const char* name, const py::array& matrix, py::ssize_t rows,
                  py::ssize_t columns) {
  const float* values = input<float>(name, matrix);
  if (matrix.ndim() != 2 || matrix.shape(0) != rows || matrix.shape(1) != columns) {
    const std::string shape = std::to_string(rows) + ", " + std::to_string(columns);
    wrong_shape(name, matrix, "[" + shape + "]");
  }
  return values;
}

// A term is (up, down, scale, strength), or (matrix, strength).
nn::Term to_term(const py::tuple& given, py::ssize_t rows, py::ssize_t k, HeldSource& source) {
  nn::Term term;
  const bool is_product = given.size() == 4;
  if (!is_product && given.size() != 2) throw py::value_error("terms: one has no 2 or 4 parts");
  const auto first = given[0].cast<py::array>();
  source.held.push_back(first);
  term.strength = given[given.size() - 1].cast<float>();
  if (!is_product) {
    term.down = thin("terms", first, rows, k);
    return term;
  }
  const auto down = given[1].cast<py::array>();
  source.held.push_back(down);
  const py::ssize_t rank = down.ndim() == 2 ? down.shape(0) : 0;
  if (rank < 1 || rank > (1 << 20)) throw py::value_error("terms: a rank is out of range");
  term.up = thin("up", first, rows, rank);
  term.down = thin("down", down, rank, k);
  term.rank = static_cast<int>(rank);
  term.scale = given[2].cast<float>();
  return term;
}

nn::Stored to_stored(const py::array& data) {
  const char kind = data.dtype().kind();
  if (kind == 'f' && data.itemsize() == 4) return nn::Stored::Float32;
  if (kind == 'f' && data.itemsize() == 2) return nn::Stored::Float16;
  if (kind == 'u' && data.itemsize() == 2) return nn::Stored::BFloat16;
  throw py::value_error("sources: one is neither float32, float16 nor the bits of bfloat16");
}

// Bytes that are given back to the system once nobody has them: what malloc keeps of a swap's
// weights would stay in memory without being of use.
py::array_t<std::uint8_t> own_pages(std::size_t bytes) {
  constexpr std::size_t kLeast = std::size_t{1} << 20;
  if (bytes < kLeast) return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(bytes));
  void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  madvise(pages, bytes, MADV_HUGEPAGE);
  using Pages = std::pair<void*, std::size_t>;
  auto owner = std::make_unique<Pages>(pages, bytes);
  const py::capsule held(owner.get(), [](void* given) {
    const std::unique_ptr<Pages> freed(static_cast<Pages*>(given));
    munmap(freed->first, freed->second);
  });
  owner.release();
  return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(bytes),
                                   static_cast<const std::uint8_t*>(pages), held);
}

// Lays out a weight; see nn::Packing. Sources are (tensor [rows, channels, kernel, kernel] or
// [rows, channels], terms).
py::tuple pack(const std::string& kind_name, int tile, const py::list& sources, bool gated,
               const std::string& isa) {
  nn::Packing packing;
  packing.kind = to_kind(kind_name);
  packing.tile = tile;
  packing.gated = gated;
  if (tile != 0 && tile != 2 && tile != 4) throw py::value_error("tile: expected 0, 2 or 4");
  if (tile != 0 && packing.kind != nn::Kind::Float32 && packing.kind != nn::Kind::Int16) {
    throw py::value_error("kind: '" + kind_name + "' is not one of float32, int16");
  }
  std::vector<HeldSource> held(sources.size());
  std::vector<nn::Source> made(sources.size());
  py::ssize_t rows = 0;
  for (std::size_t i = 0; i < held.size(); ++i) {
    const auto given = sources[i].cast<py::tuple>();
    const py::array data = held[i].data = given[0].cast<py::array>();
    if ((data.flags() & py::array::c_style) == 0) {
      throw py::value_error("sources: one is not C-contiguous");
    }
    const bool is_square = data.ndim() == 2 || (data.ndim() == 4 && data.shape(2) == data.shape(3));
    if (!is_square || data.size() == 0) {
      wrong_shape("sources", data, "[rows, channels] or [rows, channels, k, k]");
    }
    const py::ssize_t kernel = data.ndim() == 4 ? data.shape(2) : 1;
    const py::ssize_t k = data.shape(1) * kernel * kernel;
    if (data.shape(0) > (1 << 24) || k > (1 << 24)) throw py::value_error("sources: too large");
    if (i == 0) {
      packing.channels = static_cast<int>(data.shape(1));
      packing.kernel = static_cast<int>(kernel);
    }
    if (packing.channels != data.shape(1) || packing.kernel != kernel) {
      throw py::value_error("sources: their rows differ");
    }
    for (const py::handle& term : given[1].cast<py::list>()) {
      held[i].terms.push_back(to_term(term.cast<py::tuple>(), data.shape(0), k, held[i]));
    }
    made[i] = {data.data(), to_stored(data), static_cast<int>(data.shape(0)), held[i].terms.data(),
               static_cast<int>(held[i].terms.size())};
    rows += data.shape(0);
  }
  if (rows < 1 || rows > (1 << 24)) throw py::value_error("sources: their rows are out of range");
  packing.n = static_cast<int>(rows);
  if (tile != 0 && packing.kernel != 3) throw py::value_error("tile: the kernel is not 3x3");
  if (gated && (rows % 32 != 0 || tile != 0)) {
    throw py::value_error("gated: only panels of whole 32s of rows are");
  }
  packing.sources = made.data();
  packing.source_count = static_cast<int>(made.size());
  const bool is_int = packing.kind == nn::Kind::Int8 || packing.kind == nn::Kind::Int16;
  const py::ssize_t padded = py::ssize_t{packing.panels()} * nn::kPanel * packing.points();
  const std::size_t bytes =
      nn::panels_bytes(packing.kind, packing.n, packing.inner()) * packing.points();
  py::array_t<std::uint8_t> packed = own_pages(bytes);
  py::array_t<float> scales(is_int ? padded : 0);
  py::array_t<std::int32_t> sums(packing.kind == nn::Kind::Int8 ? padded : 0);
  packing.to = reinterpret_cast<char*>(packed.mutable_data());
  packing.scales = scales.mutable_data();
  packing.sums = sums.mutable_data();
  const nn::Operations& operations = nn::operations_for(isa);
  bool finite;
  {
    const py::gil_scoped_release release;
    finite = nn::pack(packing, operations);
  }
  return py::make_tuple(packed, scales, sums, finite);
}

py::array_t<float> low_rank_product(const py::array& up, const py::array& down,
                                    const std::string& isa) {
  if (up.ndim() != 2 || down.ndim() != 2 || up.size() == 0 || down.size() == 0 ||
      up.shape(0) > (1 << 24) || down.shape(1) > (1 << 24)) {
    wrong_shape("up", up, "[rows, rank], beside a `down` [rank, k]");
  }
  HeldSource held;
  held.terms.push_back(
      to_term(py::make_tuple(up, down, 1.0f, 1.0f), up.shape(0), down.shape(1), held));
  nn::Source source;
  source.rows = static_cast<int>(up.shape(0));
  source.terms = held.terms.data();
  source.term_count = 1;
  py::array_t<float> made({up.shape(0), down.shape(1)});
  float* to = made.mutable_data();
  const int k = static_cast<int>(down.shape(1));
  const nn::Operations& operations = nn::operations_for(isa);
  {
    const py::gil_scoped_release release;
    operations.merge_rows(source, k, 0, source.rows, to);
  }
  return made;
}

}  // namespace

void bind_network(py::module_& module) {
  module.def("instruction_sets", &nn::instruction_sets,
             "Name the instruction sets that this processor runs, the fastest first.");
  module.def("peak_rate", &peak_rate, py::arg("kind"), py::arg("threads"), py::arg("isa") = "",
             "Measure the multiplications and additions a second that products of this kind of "
             "value reach where nothing waits for memory.");
  module.def(
      "pack", &pack, py::arg("kind"), py::arg("tile"), py::arg("sources"), py::arg("gated"),
      py::arg("isa") = "",
      "Merge terms into tensors whose rows follow each other, and lay them out for products "
      "or, with a tile, for Winograd's; returns the bytes, the scales of int8 and int16, the "
      "sums of int8, and whether all was finite.");
  module.def(
      "low_rank_product", &low_rank_product, py::arg("up"), py::arg("down"), py::arg("isa") = "",
      "Return up [n, r] times down [r, k], whose terms are added in fp32 in the order of r.");
  py::class_<PyNetwork>(module, "Network", "A network of the native CPU runtime.")
      .def(py::init<const py::list&, const py::dict&, int, const std::string&>(),
           py::arg("operations"), py::arg("weights"), py::arg("threads"), py::arg("isa") = "")
      .def("view", &PyNetwork::view, py::arg("map"),
           "Return a map as an array on the network's memory.")
      .def("run", &PyNetwork::run, "Run all operations.")
      .def("rebind", &PyNetwork::rebind, py::arg("weights"),
           "Take other weights in the place of some, of the same names and sizes; all or none.")
      .def("run_one", &PyNetwork::run_one, py::arg("index"),
           "Run one operation, whose inputs must be there.")
      .def("run_steps", &PyNetwork::run_steps, py::arg("inputs"), py::arg("sample").noconvert(),
           py::arg("timestep").noconvert(), py::arg("noise_pred").noconvert(),
           py::arg("registers").noconvert(), py::arg("t").noconvert(), py::arg("c_in").noconvert(),
           py::arg("A").noconvert(), py::arg("b").noconvert(), py::arg("d").noconvert(),
           py::arg("guidance_scale"), py::arg("first"), py::arg("count"), py::arg("noise"),
           "Run evaluations of a sampler program on registers [R,B,...] in place. inputs: views of "
           "the other inputs with what they read. noise: a generator an image. Returns how many "
           "ran, up to one that gives NaN or infinity; whether all was finite; and the "
           "nanoseconds inside the network.")
      .def(
          "run_decoder", &PyNetwork::run_decoder, py::arg("latents").noconvert(), py::arg("scale"),
          py::arg("sample").noconvert(), py::arg("images").noconvert(),
          "Decode latents [B,...], multiplied by scale, one after the other. sample, images: views "
          "of the input and of the output [1,3,H,W]. Returns pixels [B,H,W,3], whether all values "
          "were finite, and the nanoseconds inside the network.")
      .def("moments", &PyNetwork::moments, py::arg("map"),
           "Return [2, channels] fp64 of a map of one image: each channel's mean, and the squared "
           "distances of its values from it, added up.")
      .def("run_timed", &PyNetwork::run_timed,
           "Run all operations and return the seconds that each took.")
      .def_property_readonly("arena_bytes", &PyNetwork::arena_bytes)
      .def_property_readonly("scratch_bytes", &PyNetwork::scratch_bytes);
}

}  // namespace sdengine::python
