// What networks of the native CPU runtime are made with: instruction sets, how fast their products
// are, and the packing of weights.

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nn/instruction_sets.h"
#include "nn/packing.h"
#include "nn/processor_gate.h"
#include "nn/thread_pool.h"
#include "python/arrays.h"
#include "python/bindings.h"
#include "python/own_pages.h"

namespace py = pybind11;

namespace sdengine::python {
namespace {

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

// Lays out a weight; see nn::Packing. Sources are (tensor [rows, channels, kernel, kernel] or
// [rows, channels], terms).
py::tuple pack(const std::string& kind_name, int tile, const py::list& sources, bool gated,
               const std::string& isa, std::optional<py::array> to) {
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
  py::array packed = to.has_value() ? *to : py::array_t<std::uint8_t>(own_pages(bytes));
  std::uint8_t* const written = output<std::uint8_t>("to", packed);
  if (static_cast<std::size_t>(packed.size()) != bytes) {
    wrong_shape("to", packed, "[" + std::to_string(bytes) + "]");
  }
  py::array_t<float> scales(is_int ? padded : 0);
  py::array_t<std::int32_t> sums(packing.kind == nn::Kind::Int8 ? padded : 0);
  packing.to = reinterpret_cast<char*>(written);
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

void bind_packing(py::module_& module) {
  module.def("instruction_sets", &nn::instruction_sets,
             "Name the instruction sets that this processor runs, the fastest first.");
  module.def("use_processors", &nn::ProcessorGate::set_processors, py::arg("threads"),
             "Have the networks of this process compute with no more threads at the same time, "
             "whichever engines they are of; 0 for any number.");
  module.def("peak_rate", &peak_rate, py::arg("kind"), py::arg("threads"), py::arg("isa") = "",
             "Measure the multiplications and additions a second that products of this kind of "
             "value reach where nothing waits for memory.");
  module.def(
      "pack", &pack, py::arg("kind"), py::arg("tile"), py::arg("sources"), py::arg("gated"),
      py::arg("isa") = "", py::arg("to") = py::none(),
      "Merge terms into tensors whose rows follow each other, and lay them out for products "
      "or, with a tile, for Winograd's; returns the bytes, the scales of int8 and int16, the "
      "sums of int8, and whether all was finite. The bytes are written to `to`, if it is given.");
  py::class_<SparePages, std::shared_ptr<SparePages>>(
      module, "SparePages",
      "Keep the pages of arrays that are freed meanwhile for those that are made meanwhile.")
      .def(py::init(&SparePages::make));
  module.def("own_pages", &own_pages, py::arg("size"),
             "Return bytes in large pages that go back to the system with their last array.");
  module.def(
      "low_rank_product", &low_rank_product, py::arg("up"), py::arg("down"), py::arg("isa") = "",
      "Return up [n, r] times down [r, k], whose terms are added in fp32 in the order of r.");
}

}  // namespace sdengine::python
