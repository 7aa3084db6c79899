#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "common/errors.h"
#include "cpu/finite.h"
#include "cpu/kernels.h"
#include "python/bindings.h"
#include "python/generators.h"

namespace py = pybind11;

namespace sdengine::python {
namespace {

StepCoefficients coefficients_of(py::ssize_t R, const py::array& A, const py::array& b,
                                 const py::array& d) {
  const StepCoefficients coefficients{input<double>("A", A), input<double>("b", b),
                                      input<double>("d", d), static_cast<std::size_t>(R)};
  const std::string count = std::to_string(R);
  if (A.ndim() != 2 || A.shape(0) != R || A.shape(1) != R) {
    wrong_shape("A", A, "[" + count + "," + count + "], as many as there are registers");
  }
  for (const auto& [name, vector] : {std::pair{"b", &b}, std::pair{"d", &d}}) {
    if (vector->ndim() != 1 || vector->shape(0) != R) {
      wrong_shape(name, *vector, "[" + count + "], as many as there are registers");
    }
  }
  return coefficients;
}

bool guided_step(py::array registers, const py::array& noise_pred, double guidance_scale,
                 const py::array& A, const py::array& b, const py::array& d,
                 const std::optional<py::array>& noise) {
  float* const values = output<float>("registers", registers);
  const float* const predicted = input<float>("noise_pred", noise_pred);
  if (registers.ndim() < 2) wrong_shape("registers", registers, "[R,B,...]");
  const StepCoefficients coefficients = coefficients_of(registers.shape(0), A, b, d);

  const py::ssize_t batch = registers.shape(1);
  const bool shapes_agree = noise_pred.ndim() >= 1 && same_tail(noise_pred, 1, registers, 2);
  const bool has_guidance = shapes_agree && noise_pred.shape(0) == 2 * batch;
  if (!shapes_agree || (noise_pred.shape(0) != batch && !has_guidance)) {
    wrong_shape("noise_pred", noise_pred,
                "[B,...] or [2B,...] for registers [R,B,...] of " + shape_text(registers));
  }
  const float* noise_values = nullptr;
  if (noise.has_value()) {
    noise_values = input<float>("noise", *noise);
    if (!same_tail(*noise, 0, registers, 1)) {
      wrong_shape("noise", *noise, "[B,...] for registers [R,B,...] of " + shape_text(registers));
    }
  }
  if (registers.size() == 0) return true;
  const auto num_elements = static_cast<std::size_t>(registers.size() / registers.shape(0));
  const py::gil_scoped_release unlocked;
  return cpu::guided_step(values, predicted, noise_values, num_elements, has_guidance,
                          guidance_scale, coefficients);
}

void scale_duplicate(const py::array& latents, double scale, py::array out) {
  const float* const source = input<float>("latents", latents);
  float* const target = output<float>("out", out);
  if (latents.ndim() < 1) wrong_shape("latents", latents, "[B,...]");
  const bool shapes_agree = out.ndim() >= 1 && same_tail(out, 1, latents, 1);
  const py::ssize_t batch = latents.shape(0);
  if (!shapes_agree || (out.shape(0) != batch && out.shape(0) != 2 * batch)) {
    wrong_shape("out", out, "[B,...] or [2B,...] for latents [B,...] of " + shape_text(latents));
  }
  const std::size_t copies = out.shape(0) == batch ? 1 : 2;
  const auto num_elements = static_cast<std::size_t>(latents.size());
  const py::gil_scoped_release unlocked;
  cpu::scale_duplicate(source, num_elements, static_cast<float>(scale), copies, target);
}

py::array_t<std::uint8_t> images_to_uint8(const py::array& images) {
  const float* const source = input<float>("images", images);
  if (images.ndim() != 4 || images.shape(1) != 3) wrong_shape("images", images, "[B,3,H,W]");
  const py::ssize_t batch = images.shape(0), height = images.shape(2), width = images.shape(3);
  py::array_t<std::uint8_t> pixels({batch, height, width, py::ssize_t{3}});
  std::uint8_t* const target = pixels.mutable_data();
  bool finite;
  {
    const py::gil_scoped_release unlocked;
    finite = cpu::images_to_uint8(source, static_cast<std::size_t>(batch),
                                  static_cast<std::size_t>(height * width), target);
  }
  if (!finite) throw NonFiniteError("images: contain NaN or infinity; expected -1 to 1");
  return pixels;
}

bool all_finite(const py::array& values) {
  return cpu::all_finite(input<float>("values", values), static_cast<std::size_t>(values.size()));
}

py::array_t<float> table_rows(const py::array& table, const py::array& rows) {
  const bool is_half = table.dtype().kind() == 'f' && table.itemsize() == 2;
  if (table.ndim() != 2) wrong_shape("table", table, "[N,D]");
  const bool in_place = (table.flags() & py::array::c_style) != 0 &&
                        reinterpret_cast<std::uintptr_t>(table.data()) % sizeof(std::uint16_t) == 0;
  if (is_half && !in_place) throw py::value_error("table: is not C-contiguous, or not aligned");
  const float* const values = is_half ? nullptr : input<float>("table", table);
  const std::int64_t* const numbers = input<std::int64_t>("rows", rows);
  std::vector<py::ssize_t> shape(rows.shape(), rows.shape() + rows.ndim());
  shape.push_back(table.shape(1));
  py::array_t<float> found(shape);
  const auto num_rows = static_cast<std::size_t>(table.shape(0));
  const auto width = static_cast<std::size_t>(table.shape(1));
  const auto count = static_cast<std::size_t>(rows.size());
  float* const out = found.mutable_data();
  const bool are_there = is_half ? cpu::table_rows(static_cast<const std::uint16_t*>(table.data()),
                                                   num_rows, width, numbers, count, out)
                                 : cpu::table_rows(values, num_rows, width, numbers, count, out);
  if (!are_there) {
    throw py::index_error("rows: expected 0 to " + std::to_string(table.shape(0) - 1));
  }
  return found;
}

template <typename Generator>
void bind_normal(py::module_& module, const char* name, const char* description) {
  using namespace py::literals;
  py::class_<SharedNormal<Generator>>(module, name, description)
      .def(py::init<std::uint64_t>(), "seed"_a)
      .def("fill", &SharedNormal<Generator>::fill, "out"_a.noconvert(),
           "Fill a float32 array with the next values.");
}

}  // namespace

void bind_cpu(py::module_& module) {
  using namespace py::literals;
  module.def("guided_step", &guided_step, "registers"_a.noconvert(), "noise_pred"_a.noconvert(),
             "guidance_scale"_a, "A"_a.noconvert(), "b"_a.noconvert(), "d"_a.noconvert(),
             "noise"_a.noconvert().none(true) = py::none(),
             "Apply guidance and one sampler step to registers in place; tell whether the new "
             "values are finite.");
  module.def("scale_duplicate", &scale_duplicate, "latents"_a.noconvert(), "scale"_a,
             "out"_a.noconvert(), "Write scale * latents to out, twice if out has 2B rows.");
  module.def("images_to_uint8", &images_to_uint8, "images"_a.noconvert(),
             "Turn [B,3,H,W] fp32 images of -1 to 1 into [B,H,W,3] uint8 pixels.");
  module.def("all_finite", &all_finite, "values"_a.noconvert(),
             "Tell whether no value of a float32 array is NaN or infinite.");
  module.def("table_rows", &table_rows, "table"_a.noconvert(), "rows"_a.noconvert(),
             "Return rows [...] of a table [N,D] of fp16 or fp32 as [...,D] fp32.");
  bind_normal<cpu::MersenneNormal>(module, "MersenneNormal",
                                   "Standard normal values in the order of torch's CPU generator.");
  bind_normal<cpu::PhiloxNormal>(module, "PhiloxNormal",
                                 "Standard normal values in the order of torch's CUDA generator.");
}

}  // namespace sdengine::python
