// Op registration, nothing else. The ops are private to ndfast/backends/native.py; what users and
// torch.compile see is the pair in ndfast/ops.py.
#include <Python.h>

#include "cpu/row_kernels.h"
#include "nd_loss.h"

STABLE_TORCH_LIBRARY(ndfast_native, m) {
  m.def(NDFAST_FORWARD);
  m.def(NDFAST_BACKWARD);
  m.def(NDFAST_FINISH_GRADIENT);
  m.def("capability() -> str");
  m.def("set_capability(str name) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(ndfast_native, CPU, m) {
  m.impl("forward", TORCH_BOX(&ndfast::cpu::forward));
  m.impl("backward", TORCH_BOX(&ndfast::cpu::backward));
  m.impl("finish_gradient_", TORCH_BOX(&ndfast::cpu::finish_gradient_));
}

STABLE_TORCH_LIBRARY_IMPL(ndfast_native, CompositeExplicitAutograd, m) {
  m.impl("capability", TORCH_BOX(&ndfast::cpu::capability));
  m.impl("set_capability", TORCH_BOX(&ndfast::cpu::set_capability));
}

// Importing the module loads the library, which registers the ops.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
