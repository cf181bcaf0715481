// Op registration, nothing else. The ops are private to ndfast/backends/native.py; what users and
// torch.compile see is the pair in ndfast/ops.py.
#include <Python.h>

#include "cpu/nd_loss.h"
#include "cpu/row_kernels.h"

#define NDFAST_CENTRES \
  "Tensor class_means, Tensor? target, Tensor? target_b, Tensor? lam, float lam_scalar"
#define NDFAST_STUDENT_AND_CENTRES "Tensor student, " NDFAST_CENTRES
#define NDFAST_INPUTS "Tensor student, Tensor? teacher, " NDFAST_CENTRES

STABLE_TORCH_LIBRARY(ndfast_native, m) {
  m.def("forward(" NDFAST_INPUTS
        ", Tensor? sample_weight, float weight, int reduction, int ignore_index, float eps, "
        "int num_coefficients, bool gradient) -> "
        "(Tensor loss, Tensor saved, Tensor grad_student)");
  m.def(
      "backward(Tensor grad_loss, Tensor saved, " NDFAST_INPUTS
      ", Tensor? grad_features, bool needs_student, bool needs_teacher, bool needs_class_means) -> "
      "(Tensor grad_student, Tensor grad_teacher, Tensor grad_class_means)");
  m.def(
      "finish_gradient_(Tensor(a!) grad_student, Tensor grad_loss, Tensor "
      "saved, " NDFAST_STUDENT_AND_CENTRES ") -> ()");
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
