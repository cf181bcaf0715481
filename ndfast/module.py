"""NDLoss: the loss as a module that keeps its class means."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ndfast.arguments import check_options
from ndfast.functional import nd_loss
from ndfast.labels import Mix
from ndfast.stats import NDStats


class NDLoss(nn.Module):
    """`ndfast.nd_loss` with class means that move, save and load with the module.

    Args:
        class_means: [K, D], as `ndfast.ClassMeans.compute` or `ndfast.load_class_means` gives them;
            copied.
        weight: the loss's factor.
        learnable: keep the class means as a Parameter, not as a buffer.
        reduction: "mean", "sum" or "none".
        ignore_index: rows with this label give loss 0 and gradient 0.
        eps: lower bound of the norms that are divided by.
        validate: check the range of labels on a GPU too, which synchronises.
        backend: "native", "cuda", "triton" or "reference"; by default the fastest that can run.

    Raises:
        TypeError: ``class_means`` is no floating-point tensor, or an option has another type.
        ValueError: ``class_means`` is not [K, D], or an option a value that is not taken.

    Examples:
        >>> nd = ndfast.NDLoss(ndfast.load_class_means("means.safetensors"), weight=2.0)
        >>> loss = ce + kd + nd(student_features, teacher_features, labels)
    """

    class_means: Tensor

    def __init__(
        self,
        class_means: Tensor,
        weight: float = 1.0,
        learnable: bool = False,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        eps: float = 1e-8,
        validate: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(class_means, Tensor) or not class_means.is_floating_point():
            got = getattr(class_means, "dtype", type(class_means).__name__)
            raise TypeError(f"class_means: got {got}; expected a floating-point tensor")
        if class_means.dim() != 2:
            raise ValueError(f"class_means: got shape {list(class_means.shape)}; expected [K, D]")
        check_options(weight, reduction, ignore_index, eps, backend)
        with torch.inference_mode(False):  # backward cannot keep inference mode's tensors
            means = class_means.detach().clone()
        if learnable:
            self.class_means = nn.Parameter(means)
        else:
            self.register_buffer("class_means", means)
        self.weight = weight
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.eps = eps
        self.validate = validate
        self.backend = backend

    def forward(
        self,
        student: Tensor,
        teacher: Tensor | None,
        target: Tensor | Mix,
        sample_weight: Tensor | None = None,
        *,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, NDStats]:
        """The loss; arguments, result and errors as for `ndfast.nd_loss`."""
        return nd_loss(  # type: ignore[call-overload]  # a bool is neither of its literals
            student,
            teacher,
            self.class_means,
            target,
            weight=self.weight,
            sample_weight=sample_weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            eps=self.eps,
            validate=self.validate,
            return_stats=return_stats,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        K, D = self.class_means.shape
        kind = "learnable" if isinstance(self.class_means, nn.Parameter) else "fixed"
        return f"{kind} class means of {K} classes, {D} features, weight={self.weight}"
