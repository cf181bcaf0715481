"""The backends: modules with one interface, chosen by `ndfast.dispatch`.

Each has, on real tensors whose shapes and dtypes `ndfast.arguments` has checked:

- ``unusable(device)``: None, or the sentence that says why it cannot run on that device.
- ``forward(student, teacher, class_means, target, target_b, lam, lam_scalar, sample_weight, weight,
  reduction, ignore_index, eps, num_coefficients, gradient)`` ->
  ``(loss, scale, coefficients, grad_student)``
- ``backward(grad_loss, scale, coefficients, student, teacher, class_means, target, target_b, lam,
  lam_scalar, needs_student, needs_teacher, needs_class_means)`` ->
  ``(grad_student, grad_teacher, grad_class_means)``
- ``scale_gradient_(grad_student, grad_loss, scale)``: in place, ``grad_student *= grad_loss * scale``.

Shapes: student [N, D]; teacher [N, D], [N] (its norms) or None; class_means [K, D]; target and
target_b [N] integers, target None for one centre a row ([N, D] class_means); lam [N] or None, when
lam_scalar holds for every row; sample_weight [N] or None; reduction 0 none, 1 mean, 2 sum.

``coefficients`` [num_coefficients, N] is what a row's gradients are made of (num_coefficients is 0,
2 or 4; 4 where teacher or class means need a gradient), ``grad_student`` [N, D] the finished
gradient for an upstream gradient of 1 (only where ``gradient``). Both lack the factor ``scale``, a
0-dim tensor: the part of the mean's denominator that one pass over the rows cannot know.
What is not asked for comes back as an empty tensor.
"""
