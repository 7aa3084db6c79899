// Device memory crosses this border as integers, as torch and the CUDA bindings for Python give it.

#include "cuda/info.h"
#include "python/arrays.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace sdengine::python {
namespace {

using Address = std::uintptr_t;

py::dict device_info(int device) {
  using namespace py::literals;
  const cuda::DeviceInfo info = cuda::device_info(device);
  return py::dict("name"_a = info.name,
                  "compute_capability"_a = std::to_string(info.compute_capability / 10) + "." +
                                           std::to_string(info.compute_capability % 10),
                  "num_multiprocessors"_a = info.num_multiprocessors,
                  "total_bytes"_a = info.total_bytes);
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

}  // namespace

void bind_cuda(py::module_& module) {
  using namespace py::literals;
  module.def(
      "cuda_available",
      [](int device) {
        const cuda::Availability found = cuda::available(device);
        return py::make_tuple(found.usable, found.reason);
      },
      "device"_a = 0, "Tell whether a GPU can be used, and why; makes no CUDA context.");
  module.def("cuda_device_info", &device_info, "device"_a = 0,
             "Describe a GPU; makes no CUDA context.");
  module.def("cuda_free_bytes", &cuda::free_bytes, "device"_a = 0,
             py::call_guard<py::gil_scoped_release>(),
             "Tell what is free on a GPU; makes a CUDA context there.");
  module.def("cuda_synchronize", &cuda::synchronize, "device"_a = 0,
             py::call_guard<py::gil_scoped_release>(),
             "Wait for everything queued on a GPU's default stream.");
  py::class_<cuda::Buffer>(module, "CudaBuffer", "Memory on a GPU.")
      .def(py::init<std::size_t, int>(), "size_bytes"_a, "device"_a = 0)
      .def_property_readonly(
          "address",
          [](const cuda::Buffer& buffer) { return reinterpret_cast<Address>(buffer.data()); })
      .def_property_readonly("size_bytes", &cuda::Buffer::size_bytes)
      .def("upload", &upload, "array"_a.noconvert(), "Copy an array to the buffer's begin.")
      .def("download", &download, "array"_a.noconvert(), "Copy the buffer's begin to an array.");
}

}  // namespace sdengine::python
