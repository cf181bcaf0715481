"""What a call of `fuzzing` must give: the definition's results, and how far from them is right."""

from __future__ import annotations

from typing import Any

import torch
from cases import Case, rows_of
from fuzzing import DOUBLE, Call, case_of
from torch import Tensor
from torch.linalg import vector_norm

import ndfast
from ndfast.arguments import flatten
from ndfast.backends import reference
from ndfast.upstream import BY_DTYPE

HALVES = (torch.bfloat16, torch.float16)


def run(call: Call, case: Case, backend: str) -> dict[str, Tensor]:
    """The loss, the gradients that are needed and the statistics."""
    inputs = {
        name: value.detach().requires_grad_(name in call.needs)
        for name in ("student", "teacher", "class_means")
        if (value := getattr(case, name)) is not None
    }
    if call.teacher == "norms":
        inputs["teacher"].requires_grad_(False)
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    expect_upstream(call, case)
    function = ndfast.attach_nd_loss if call.attached else ndfast.nd_loss
    arguments = (inputs["student"], inputs.get("teacher"), inputs["class_means"], case.target)
    outputs: Any = function(*arguments, **case.options, return_stats=call.stats, backend=backend)
    *outputs, stats = outputs if call.stats else (*_as_tuple(outputs), None)
    loss = outputs[-1]
    results = {"loss": loss.detach()}
    if leaves:
        roots = {loss: case.upstream.to(loss.dtype)}
        if call.attached and "student" in leaves:
            roots[outputs[0]] = case.grad_features
        grads = (tuple(roots), tuple(leaves.values()), tuple(roots.values()))
        if call.backward_twice:
            torch.autograd.grad(*grads, retain_graph=True)
        results |= zip(leaves, torch.autograd.grad(*grads), strict=True)
    return results if stats is None else results | stats._asdict()


def expect_upstream(call: Call, case: Case) -> None:
    """As if the upstream gradients that have come before were such."""
    known = BY_DTYPE[case.student.dtype]
    known.forget()
    if call.expected != "as at first":
        known.expected = case.upstream.sum().item() if call.expected == "this" else 0.7


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


class Expected:
    """A result of the definition, and how far from it is right."""

    def __init__(
        self, exact: Tensor, dtype: torch.dtype, scale: Tensor, are_features: bool
    ) -> None:
        """From the result in float64, its dtype, and how large each row is, [rows, 1]."""
        self.as_rows = flatten if are_features else lambda x: x.reshape(-1, 1)
        rows = self.as_rows(exact)
        self.shape, self.dtype = exact.shape, dtype
        self.written = rows.to(dtype)  # which may have no number so large
        self.is_finite = self.written.isfinite()
        self.all_finite = bool(self.is_finite.all())
        self.exact = torch.where(self.is_finite, rows, 0)
        self.scale = torch.maximum(scale, vector_norm(self.exact, dim=1, keepdim=True))
        self.bound = 0.0

    def error(self, got: Tensor) -> float:
        """The largest of a row, relative to its scale; NaN and Inf must be where they are here."""
        got = self.as_rows(got)
        difference = got - self.exact
        if not self.all_finite:
            same = (got == self.written) | (got.isnan() & self.written.isnan())
            if not (same | self.is_finite).all():
                return torch.inf
            difference = torch.where(self.is_finite, difference, 0)
        if got.numel() == 0:
            return 0.0
        return (vector_norm(difference, dim=1, keepdim=True) / self.scale).max().item()


class Definition:
    """What a call must give: the definition in float64 on up-cast inputs."""

    def __init__(self, call: Call) -> None:
        self.call, self.case = call, case_of(call)
        sums = torch.promote_types(call.dtypes[0], torch.float32)
        exact = self.case.to(DOUBLE)
        results = exact.run("reference", separately=True)
        if call.stats:
            inputs = (exact.student, exact.teacher, exact.class_means, exact.target)
            options = {**exact.options, "return_stats": True, "backend": "reference"}
            results |= ndfast.nd_loss(*inputs, **options)[1]._asdict()
        rounded: dict[str, Tensor] = {}
        if not {*HALVES}.isdisjoint(call.dtypes):
            rounded = self.case.to(sums).run("reference", separately=True)
        self.expected: dict[str, Expected] = {}
        for name, scale in _natural_scales(exact, call).items():
            if name in results:
                of = getattr(self.case, name, None)
                dtype = sums if of is None else of.dtype
                expected = Expected(results[name], dtype, scale, of is not None)
                expected.bound = 1e-12 if {dtype, sums} == {DOUBLE} else 1e-5
                if dtype in HALVES:
                    theirs = expected.error(rounded[name].to(dtype))
                    expected.bound = max(expected.bound, 2 * theirs)
                self.expected[name] = expected

    def check(self, backend: str, what: str) -> None:
        """Raises AssertionError where ``backend`` gives something else; its text has ``what``."""
        for name, got in run(self.call, self.case, backend).items():
            if name not in self.expected:  # of numbers that float32 cannot square
                continue
            expected = self.expected[name]
            assert got.dtype == expected.dtype, (what, name, got.dtype)
            assert got.shape == expected.shape, (what, name, got.shape)
            error = expected.error(got)
            text = f"{what}: {name} is off by {error:.2e}, more than {expected.bound:.2e}"
            assert error <= expected.bound, text


def _natural_scales(exact: Case, call: Call) -> dict[str, Tensor]:
    """How large each row's terms are before they cancel: |alpha|·‖c‖ and so on.

    p is at most ‖s‖·‖c‖/n_c, so that the terms with beta, gamma and delta are no larger. A centre
    that is mixed is as much less precise as its own terms cancel.
    """
    rows = rows_of(exact)
    s, t, eps = rows.student, rows.teacher, rows.eps
    centres = reference.gather_centres(*rows.centres, DOUBLE)
    terms = reference.row_terms(s, t, centres, eps)
    saved = reference.forward(*rows, 4, False)[1]
    alpha = reference.coefficients_of(saved, 1, len(rows.student))[0].abs()
    shares = _shares(exact, len(s))
    imprecise = torch.ones_like(alpha)
    if shares is not None:
        whole = shares @ vector_norm(exact.class_means, dim=1)
        imprecise = (whole / terms.centre_norm).nan_to_num(1, 1).clamp_min(1)
    m, n_c = terms.larger_norm, terms.centre_norm.clamp_min(eps)
    alpha = alpha * imprecise
    loss = alpha * n_c * m
    alpha = alpha * exact.upstream.reshape(-1).abs()
    # A coefficient or a product of s and c past float32's normal numbers is not precise to 1e-5.
    tiny = torch.finfo(torch.float32).tiny
    lost = tiny * (1 + terms.student_norm + terms.teacher_norm + terms.centre_norm)
    lost = lost + tiny * alpha * (1 / m + 1 / n_c)
    student = alpha * terms.centre_norm + lost
    centre = alpha * terms.student_norm + lost
    scales = {
        "loss": loss if call.reduction == "none" else loss.nansum()[None],
        "student": student,
        "teacher": alpha * terms.centre_norm * terms.student_norm / m + lost,
        "class_means": centre if shares is None else centre.nan_to_num(0, 0) @ shares,
    }
    if exact.grad_features is not None:
        scales["student"] = student + vector_norm(flatten(exact.grad_features), dim=1)
    if call.stats:
        scales["cosine"] = imprecise.sum()[None]
        norms = torch.cat([terms.student_norm, terms.teacher_norm])
        if not ((norms > 0) & (norms < 1e-18)).any():  # their squares are float32's
            scales["norm_ratio"] = scales["fraction_student_longer"] = torch.zeros(1)
    return {name: scale.nan_to_num(0, 0).clamp_min(tiny)[:, None] for name, scale in scales.items()}


def _shares(exact: Case, R: int) -> Tensor | None:
    """[R, K]: how much of each class mean is in a row's centre; None for one centre a row."""
    target, K = exact.target, len(exact.class_means)

    def one_hot(labels: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(labels.long().reshape(-1).clamp(0, K - 1), K).to(DOUBLE)

    if target is None:
        return None
    if isinstance(target, ndfast.Mix):
        lam = torch.as_tensor(target.lam, dtype=DOUBLE).reshape(-1, 1)
        a, b = lam.clamp_min(0.01), (1 - lam).clamp_min(0.01)  # lam is rounded to float32
        return a * one_hot(target.target_a) + b * one_hot(target.target_b)
    return flatten(target) if target.is_floating_point() else one_hot(target)
