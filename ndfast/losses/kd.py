"""KD: the teacher's probabilities as soft labels."""

from __future__ import annotations

from torch import Tensor

from ndfast.losses.rows import kl_divergence, mean_over_rows, softened


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """Hinton's distillation loss, the mean over the rows of

        T² · KL(softmax(z_t / T) ‖ softmax(z_s / T))

    A class that the teacher does not have (a logit of -inf) adds nothing, to the gradient neither,
    whether the student has it or not. One that only the student does not have makes the loss
    infinite; its gradient is finite. A row of no class, one of +inf and one of NaN are NaN. With
    one class the loss is 0, and so it is, with zero gradient, with no row.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv
    1503.02531.

    Args:
        student_logits: [N, K] of any floating-point dtype.
        teacher_logits: [N, K]; a constant, no gradient goes to them.
        temperature: T, above 0.

    Returns:
        The loss in nats, 0-dim, float32 (float64 if any logits are).

    Raises:
        TypeError: logits are no floating-point tensor; the temperature is no number.
        ValueError: the shapes are not [N, K] and the same; the temperature is out of range.
    """
    student, teacher = softened(student_logits, teacher_logits, temperature)
    divergence = kl_divergence(student.log_softmax(dim=1), teacher.log_softmax(dim=1))
    return temperature**2 * mean_over_rows(divergence)
