"""The backends: modules with one interface, chosen by `ndfast.dispatch`.

Each has, on real tensors whose shapes and dtypes `ndfast.arguments` has checked:

- ``unusable(device)``: None, or the sentence that says why it cannot run on that device.
- ``forward(student, teacher, class_means, target, target_b, lam, lam_scalar, sample_weight, weight,
  reduction, ignore_index, eps, num_coefficients, gradient)`` -> ``(loss, saved, grad_student)``
- ``backward(grad_loss, saved, student, teacher, class_means, target, target_b, lam, lam_scalar,
  grad_features, needs_student, needs_teacher, needs_class_means)`` ->
  ``(grad_student, grad_teacher, grad_class_means)``; ``grad_features``, None or, only with
  ``needs_student``, a gradient [N, D] in the student's dtype that goes into grad_student: added in
  the dtype of the sums, so that the sum is rounded once, and never written. A row that is ignored
  gets it as it is.
- ``finish_gradient_(grad_student, grad_loss, saved, student, class_means, target, target_b, lam,
  lam_scalar)``: in place, makes forward's ``grad_student`` right for this upstream gradient. Where
  ``grad_loss * scale`` is 1 it is right already and nothing is moved; otherwise it is written anew
  from the coefficients: as many bytes as scaling it, and rounded once, not twice.

Shapes: student [N, D]; teacher [N, D], [N] (its norms) or None; class_means [K, D]; target and
target_b [N] integers, target None for one centre a row ([N, D] class_means); lam [N] or None, when
lam_scalar holds for every row; sample_weight [N] or None; reduction 0 none, 1 mean, 2 sum.

``saved`` is one tensor for backward, for each is an allocation: ``scale``, and then the rows'
coefficients [num_coefficients, N], which a row's gradients are made of: 0, 2 (alpha, beta: the
student's), 4 (and gamma, delta: the teacher's and the class means') or 8 (and the measures of
`reference.row_measures`, for `ndfast.stats`). ``grad_student`` [N, D] is the finished gradient for
an upstream gradient of 1 (only where ``gradient``, and coefficients with it). It and the
coefficients, but not the measures, lack the factor ``scale``: the part of the mean's denominator
that one pass over the rows cannot know. A backend's ``is_unscaled`` says that it is always 1. An
ignored row has zeros in all. What is not asked for comes back as an empty tensor.
"""
