// Device memory crosses this border as integers, as torch and the CUDA bindings for Python give it.

#include "cuda/kernels.h"
#include "python/arrays.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace sdengine::python {
namespace {

using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

py::dict device_info(int device) {
  using namespace py::literals;
  const cuda::DeviceInfo info = cuda::device_info(device);
  return py::dict("name"_a = info.name,
                  "compute_capability"_a = std::to_string(info.compute_capability_major) + "." +
                                           std::to_string(info.compute_capability_minor),
                  "num_multiprocessors"_a = info.num_multiprocessors,
                  "total_bytes"_a = info.total_bytes, "free_bytes"_a = info.free_bytes);
}

void upload(cuda::Buffer& buffer, const py::array& array) {
  if ((array.flags() & py::array::c_style) == 0) {
    throw py::value_error("array: is not C-contiguous; pass numpy.ascontiguousarray of it");
  }
  const void* const source = array.data();
  const auto size_bytes = static_cast<std::size_t>(array.nbytes());
  const py::gil_scoped_release unlocked;
  buffer.upload(source, size_bytes);
}

void download(const cuda::Buffer& buffer, py::array array) {
  if ((array.flags() & py::array::c_style) == 0 || !array.writeable()) {
    throw py::value_error("array: must be C-contiguous and writable");
  }
  void* const target = array.mutable_data();
  const auto size_bytes = static_cast<std::size_t>(array.nbytes());
  const py::gil_scoped_release unlocked;
  buffer.download(target, size_bytes);
}

void guided_step(Address registers, Address noise_pred, Address noise, std::size_t num_elements,
                 bool has_guidance, double guidance_scale, Address table, Address step,
                 std::size_t num_registers, Address not_finite, cuda::Stream stream) {
  const cuda::StepTable rows{pointer<const double>(table), pointer<const std::int32_t>(step),
                             num_registers};
  cuda::guided_step(pointer<float>(registers), pointer<const float>(noise_pred),
                    pointer<const float>(noise), num_elements, has_guidance, guidance_scale, rows,
                    pointer<std::int32_t>(not_finite), stream);
}

void scale_duplicate(Address latents, std::size_t num_elements, Address scales, Address step,
                     std::size_t copies, Address out, cuda::Stream stream) {
  cuda::scale_duplicate(pointer<const float>(latents), num_elements, pointer<const double>(scales),
                        pointer<const std::int32_t>(step), copies, pointer<float>(out), stream);
}

void images_to_uint8(Address images, std::size_t batch, std::size_t num_pixels, Address out,
                     Address not_finite, cuda::Stream stream) {
  cuda::images_to_uint8(pointer<const float>(images), batch, num_pixels, pointer<std::uint8_t>(out),
                        pointer<std::int32_t>(not_finite), stream);
}

}  // namespace

void bind_cuda(py::module_& module) {
  using namespace py::literals;
  module.def(
      "cuda_available",
      [] {
        const cuda::Availability found = cuda::available();
        return py::make_tuple(found.usable, found.reason);
      },
      "Tell whether a GPU can be used, and why.");
  module.def("cuda_device_info", &device_info, "device"_a = 0, "Describe a GPU.");
  module.def("cuda_synchronize", &cuda::synchronize, "stream"_a = 0,
             py::call_guard<py::gil_scoped_release>(), "Wait for everything queued on a stream.");
  py::class_<cuda::Buffer>(module, "CudaBuffer", "Memory on the current GPU.")
      .def(py::init<std::size_t>(), "size_bytes"_a)
      .def_property_readonly(
          "address",
          [](const cuda::Buffer& buffer) { return reinterpret_cast<Address>(buffer.data()); })
      .def_property_readonly("size_bytes", &cuda::Buffer::size_bytes)
      .def("upload", &upload, "array"_a.noconvert(), "Copy an array to the buffer's begin.")
      .def("download", &download, "array"_a.noconvert(), "Copy the buffer's begin to an array.");
  module.def("cuda_guided_step", &guided_step, "registers"_a, "noise_pred"_a, "noise"_a,
             "num_elements"_a, "has_guidance"_a, "guidance_scale"_a, "table"_a, "step"_a,
             "num_registers"_a, "not_finite"_a, "stream"_a = 0,
             "Queue guidance and one sampler step on device memory.");
  module.def("cuda_scale_duplicate", &scale_duplicate, "latents"_a, "num_elements"_a, "scales"_a,
             "step"_a, "copies"_a, "out"_a, "stream"_a = 0,
             "Queue out = scale * latents, `copies` times in a row.");
  module.def("cuda_images_to_uint8", &images_to_uint8, "images"_a, "batch"_a, "num_pixels"_a,
             "out"_a, "not_finite"_a, "stream"_a = 0,
             "Queue the conversion of images to pixels on device memory.");
}

}  // namespace sdengine::python
