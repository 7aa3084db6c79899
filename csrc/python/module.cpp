#include <pybind11/stl.h>

#include "common/errors.h"
#include "cuda/info.h"
#include "nn/instruction_sets.h"
#include "nn/network.h"
#include "python/bindings.h"
#include "runtime/errors.h"

namespace py = pybind11;

namespace {

constexpr const char* kCompiler =
#if defined(__clang__)
    "Clang " __clang_version__;
#elif defined(__GNUC__)
    "GCC " __VERSION__;
#else
    "unknown";
#endif

py::dict build_info() {
  py::dict info;
  info["compiler"] = kCompiler;
  info["instruction_sets"] = sdengine::nn::built_instruction_sets();
  const std::string version = sdengine::cuda::compiled_version();
  info["cuda"] = version.empty() ? py::object(py::none()) : py::str(version);
  info["cuda_capabilities"] = sdengine::cuda::compiled_capabilities();
  return info;
}

void raise(const char* name, const char* message) {
  const py::object type = py::module_::import("sdengine.errors").attr(name);
  PyErr_SetString(type.ptr(), message);
}

void translate(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const sdengine::NonFiniteError& found) {
    raise("NonFiniteError", found.what());
  } catch (const sdengine::DeviceLostError& found) {
    raise("DeviceLostError", found.what());
  } catch (const sdengine::OutOfMemoryError& found) {
    raise("OutOfMemoryError", found.what());
  } catch (const sdengine::DeviceError& found) {
    raise("DeviceError", found.what());
  } catch (const sdengine::nn::PlanError& found) {
    raise("BundleError", found.what());
  } catch (const sdengine::runtime::Cancelled& found) {
    raise("Cancelled", found.what());
  }
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "The compute that sdengine's run time does itself.";
  py::register_local_exception_translator(&translate);
  module.def("build_info", &build_info, "Tell what the extension was built with.");
  sdengine::python::bind_cpu(module);
  sdengine::python::bind_cuda(module);
  sdengine::python::bind_network(module);
  sdengine::python::bind_packing(module);
  sdengine::python::bind_runtime(module);
}
