#pragma once

#include <pybind11/pybind11.h>

namespace sdengine::python {

void bind_cpu(pybind11::module_& module);
void bind_cuda(pybind11::module_& module);
void bind_network(pybind11::module_& module);
void bind_packing(pybind11::module_& module);
void bind_runtime(pybind11::module_& module);

}  // namespace sdengine::python
