"""NDLoss for torchdistill's YAML files. Written against torchdistill 1.1."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchdistill.losses.registry import register_mid_level_loss

import ndfast


@register_mid_level_loss
class NDLoss(nn.Module):
    """`ndfast.NDLoss` on what torchdistill's forward hooks caught, by ``key: 'NDLoss'``.

    A YAML file names this module under ``dependencies``, the loss as a criterion, its factor as the
    term's ``weight``, and the two modules under ``forward_hook``.

    torchdistill keeps its criteria in a dict that no device reaches, so the class means are moved
    here, once, to where the features are.

    Args:
        class_means: file of the teacher's class means [K, D], for `ndfast.load_class_means`.
        student_module_path: the student's module that has the features [N, D] or [N, D, 1, 1]; for
            a classifier's input, the classifier.
        teacher_module_path: the teacher's, with features of the same width.
        student_module_io: "input" or "output" of the module.
        teacher_module_io: likewise.
        ignore_index: rows with this label give loss 0 and gradient 0.
        backend: as in `ndfast.nd_loss`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file holds no class means.
    """

    def __init__(
        self,
        class_means: str,
        student_module_path: str,
        teacher_module_path: str,
        student_module_io: str = "output",
        teacher_module_io: str = "output",
        ignore_index: int = -100,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        means = ndfast.load_class_means(class_means)
        self.nd = ndfast.NDLoss(means, ignore_index=ignore_index, backend=backend)
        self.student = student_module_path, student_module_io
        self.teacher = teacher_module_path, teacher_module_io

    def forward(
        self,
        student_io_dict: dict[str, dict[str, Tensor]],
        teacher_io_dict: dict[str, dict[str, Tensor]],
        targets: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of a batch, 0-dim; errors as for `ndfast.nd_loss`.

        Args:
            student_io_dict: what the student's hooks caught, by module path and "input" or
                "output".
            teacher_io_dict: the teacher's.
            targets: class indices [N], or class probabilities [N, K].
            *args: what other criteria may take.
            **kwargs: likewise.
        """
        student = _caught(student_io_dict, "student", *self.student)
        teacher = _caught(teacher_io_dict, "teacher", *self.teacher)
        if self.nd.class_means.device != student.device:
            self.nd.to(student.device)
        return self.nd(student, teacher.detach(), targets)


def _caught(io_dict: dict[str, dict[str, Tensor]], role: str, path: str, io: str) -> Tensor:
    try:
        return io_dict[path][io]
    except KeyError:
        raise KeyError(
            f"{role}_module_path: no hook caught the {io} of {path!r}; name it under the {role}'s "
            f"forward_hook: {io}"
        ) from None
