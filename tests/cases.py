"""Random calls of the loss in every option, and how close to the definition a result must be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor

import ndfast
from ndfast.arguments import Rows, check_and_flatten
from ndfast.backends import native, reference

TEACHERS = ("features", "norms", "absent")
TARGETS = ("indices", "mix", "mix by row", "probabilities", "a centre a row")
REDUCTIONS = ("mean", "sum", "none")

# Inductor keeps backward's graph on disk, as it was when the code last gave the same forward.
compiles_anew = torch._inductor.config.patch(force_disable_caches=True)
# torch.compile's graph is the same before Inductor, whose C++ takes its compiler ten seconds.
compilers = pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)]
)
needs_native = pytest.mark.skipif(
    native.unusable(torch.device("cpu")) is not None, reason="the library is not built"
)


@dataclass(frozen=True)
class Case:
    """Arguments of nd_loss, and the upstream gradients to call backward with.

    With ``grad_features``, which stands for the classifier's gradient, it is attach_nd_loss's.
    """

    student: Tensor
    teacher: Tensor | None
    class_means: Tensor
    target: Any
    options: dict[str, Any]
    upstream: Tensor
    grad_features: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Case:
        """The same numbers in another dtype."""

        def cast(value: Any) -> Any:
            if isinstance(value, ndfast.Mix):
                return replace(value, lam=cast(value.lam))
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.detach().to(dtype) if floating else value

        options = {name: cast(value) for name, value in self.options.items()}
        tensors = [self.student, self.teacher, self.class_means, self.target]
        return Case(*map(cast, tensors), options, cast(self.upstream), cast(self.grad_features))

    def run(self, backend: str, *, separately: bool = False) -> dict[str, Tensor]:
        """Loss and gradients through the public function.

        Args:
            backend: the backend's name.
            separately: with ``grad_features``, call nd_loss and have autograd add the gradients up.
        """
        student = self.student.detach().requires_grad_()
        class_means = self.class_means.detach().requires_grad_()
        teacher = None if self.teacher is None else self.teacher.detach()
        if teacher is not None and teacher.shape == student.shape:
            teacher.requires_grad_()
        arguments = (student, teacher, class_means, self.target)
        options = {**self.options, "backend": backend}
        if self.grad_features is None or separately:
            features, loss = student, ndfast.nd_loss(*arguments, **options)
        else:
            features, loss = ndfast.attach_nd_loss(*arguments, **options)
        upstream = {loss: self.upstream.to(loss.dtype)}
        if self.grad_features is not None:
            upstream[features] = self.grad_features
        torch.autograd.backward(tuple(upstream), tuple(upstream.values()))
        results = {"loss": loss.detach(), "student": student.grad, "class_means": class_means.grad}
        if teacher is not None and teacher.requires_grad:
            results["teacher"] = teacher.grad
        return results


def draw(
    N: int,
    D: int,
    K: int,
    dtype: torch.dtype,
    teacher: str = "features",
    target: str = "indices",
    reduction: str = "mean",
    weighted: bool = False,
    ignoring: bool = False,
    means_dtype: torch.dtype = torch.float32,
    attached: bool = False,
    teacher_dtype: torch.dtype | None = None,
) -> Case:
    """A random case from PyTorch's global generator."""
    student, features = torch.randn(N, D).to(dtype), torch.randn(N, D).to(teacher_dtype or dtype)
    # Where rounding decides which norm is the larger, half of the gradient hangs on it.
    n_s, n_t = (torch.linalg.vector_norm(x.double(), dim=1) for x in (student, features))
    apart = torch.where((n_s / n_t - 1).abs() < 1e-5, 1.01, 1.0)
    features, norms = features * apart[:, None].to(features.dtype), (n_t * apart).to(dtype)
    class_means = torch.randn(N if target == "a centre a row" else K, D).to(means_dtype)
    labels = torch.randint(0, K, (N,))
    others = torch.randint(0, K, (N,), dtype=torch.int32)
    if ignoring:
        labels[torch.rand(N) < 0.3] = 255
    targets = {
        "indices": labels,
        "mix": ndfast.Mix(labels, others, 0.3),
        "mix by row": ndfast.Mix(labels, others, torch.rand(N)),
        "probabilities": torch.rand(N, K).softmax(1),
        "a centre a row": None,
    }
    options = {"weight": 1.7, "reduction": reduction, "ignore_index": 255}
    if weighted:
        options["sample_weight"] = torch.rand(N) + 0.1
    upstream = torch.rand(N if reduction == "none" else ()) + 0.5
    # For 1 the gradient is forward's, for anything else backward writes it.
    upstream = torch.where(torch.rand_like(upstream) < 0.5, 1, upstream)
    return Case(
        student,
        {"features": features, "norms": norms, "absent": None}[teacher],
        class_means,
        targets[target],
        options,
        upstream,
        # About as large as the loss's own gradient, so that an error of neither hides in the other.
        (0.02 * torch.randn(N, D)).to(dtype) if attached else None,
    )


def every_option() -> Iterator[dict[str, Any]]:
    """Keyword arguments of `draw` for each combination that differs."""
    for teacher, target, reduction in itertools.product(TEACHERS, TARGETS, REDUCTIONS):
        for weighted in (False, True):
            for ignoring in (False, True) if target[:3] in ("ind", "mix") else (False,):
                yield {
                    "teacher": teacher,
                    "target": target,
                    "reduction": reduction,
                    "weighted": weighted,
                    "ignoring": ignoring,
                }


def rows_of(case: Case) -> Rows:
    """The arguments as backends take them."""
    options = {"sample_weight": None, "eps": 1e-8, "validate": False, "backend": None}
    options |= case.options
    inputs = (case.student, case.teacher, case.class_means, case.target)
    return check_and_flatten(*inputs, **options)[0]


def natural_scales(case: Case) -> dict[str, Tensor]:
    """How large each row's gradient is before its terms cancel, in float64.

    An error is compared with this where cancellation makes the gradient itself a poor measure: few
    features (D = 1 has gradient 0), and the teacher, whose gradient is a multiple of <s, c>.
    """
    exact = case.to(torch.float64)
    rows = rows_of(exact)
    saved = reference.forward(*rows, 4, False)[1]
    centres = reference.gather_centres(*rows.centres, torch.float64)
    alpha = (reference.coefficients_of(saved, 1, len(rows.student))[0] * exact.upstream)[:, None]
    norm = torch.linalg.vector_norm
    n_s, n_c = norm(rows[0], dim=1, keepdim=True), norm(centres, dim=1, keepdim=True)
    student = alpha.abs() * n_c
    # p is at most ‖s‖: |gamma|·‖t‖ = p/m² is at most |alpha|·n_c·‖s‖/m, of which ‖s‖/m is at most 1
    teacher = student
    if rows.teacher is not None:
        n_t = norm(rows.teacher, dim=-1, keepdim=True).reshape(-1, 1)
        teacher = student * n_s / torch.maximum(n_s, n_t)
    return {
        "loss": torch.tensor(1.0, dtype=torch.float64),
        "student": student,
        "teacher": teacher,
        "class_means": (alpha.abs() * n_s).sum(),
    }


def worst_error(got: Tensor, exact: Tensor, scale: Tensor | None) -> float:
    """The largest error of a row relative to ``scale``, by default the row's own norm."""
    if exact.numel() == 0:
        return 0.0 if got.shape == exact.shape else float("inf")
    if exact.dim() < 2:
        got, exact = got.reshape(-1, 1), exact.reshape(-1, 1)
    error = torch.linalg.vector_norm(got.double() - exact, dim=1, keepdim=True)
    own = torch.linalg.vector_norm(exact, dim=1, keepdim=True)
    scale = own if scale is None else torch.maximum(own, scale)
    ratio = torch.where(error == 0, 0, error / scale)
    return ratio.nan_to_num(nan=float("inf")).max().item()


def assert_as_defined(case: Case, backend: str, what: Any) -> None:
    """float32 within 1e-5; lower precision at most twice the error of the rounded reference."""
    got = case.run(backend)
    exact = case.to(torch.float64).run("reference", separately=True)
    dtype = case.student.dtype
    rounded = None
    given = [x.dtype for x in (case.student, case.teacher, case.class_means) if x is not None]
    if not {torch.float16, torch.bfloat16}.isdisjoint(given):
        rounded = case.to(torch.float32).run("reference", separately=True)
    scales = natural_scales(case)
    for name, value in got.items():
        of = {"student": case.student, "teacher": case.teacher, "class_means": case.class_means}
        expected_dtype = of[name].dtype if name in of else torch.promote_types(dtype, torch.float32)
        assert value.dtype == expected_dtype, (what, name, value.dtype)
        assert value.shape == exact[name].shape, (what, name, value.shape)
        strict = name in ("student", "class_means") and case.student.shape[1] >= 32
        scale = None if strict else scales[name]
        bound = 1e-12 if {*given} == {torch.float64} else 1e-5
        if rounded is not None:
            theirs = worst_error(rounded[name].to(value.dtype), exact[name], scale)
            bound = max(bound, 2 * theirs)
        error = worst_error(value, exact[name], scale)
        assert error <= bound, f"{what}: {name} is off by {error:.2e}, more than {bound:.2e}"
