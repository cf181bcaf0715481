"""Whether the ND loss that trains, and its gradient, are the definition's: looked at in the run.

On a step that is checked, the very numbers that go into the loss go through the reference too, in
float64. Compared are the loss that the step uses and the gradient that leaves the loss for the
features, so that whatever is wrong between them is seen. The training is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.utils.hooks import RemovableHandle

import ndfast
from ndfast.arguments import Rows, check_and_flatten
from ndfast.backends import reference
from ndfast.train.engine.verdicts import QUANTITIES

if TYPE_CHECKING:
    from accelerate import Accelerator

FIRST_STEPS = 10  # which are checked besides those that are logged
TOLERANCE = 1e-5
_TIE = 1e-5  # norms so close: rounding decides which is the larger
# Of norms past these float32 loses the squares, or the coefficients; such rows are not compared.
_LEAST_NORM, _LARGEST_NORM = 1e-12, 1e12
_HALVES = (torch.float16, torch.bfloat16)


class LossCheck:
    """Compares a module of the loss with the reference, on the batches that it is told of.

    Args:
        nd: the module, called with student, teacher and target by position; its mean is taken.
        class_means: [K, D], which ``nd`` was built with.
    """

    def __init__(self, nd: ndfast.NDLoss, class_means: Tensor) -> None:
        self._nd = nd
        self._class_means = class_means.detach().double().clone()
        self._are_untrained = isinstance(nd.class_means, nn.Parameter)
        self._upstream: float | None = None
        self._expected: _Expected | None = None
        self._off: Tensor | None = None  # class means that no step has trained yet
        self._arrived: dict[str, Tensor] = {}
        self._of_parameter: RemovableHandle | None = None
        self._found: list[Tensor] = []
        nd.register_forward_pre_hook(self._before)
        nd.register_forward_hook(self._after)

    def keep_class_means(self) -> None:
        """Takes the module's class means for right: a checkpoint's, which a training goes on with.

        Those of the teacher are taken anew then, and come out otherwise on another machine.
        """
        self._class_means = self._nd.class_means.detach().double().clone()
        self._are_untrained = False

    def begin(self, upstream: float) -> None:
        """The batch to come is checked; ``upstream`` is what its loss, unweighted, counts for."""
        self._upstream, self._expected, self._off, self._arrived = upstream, None, None, {}

    def end(self, loss: Tensor) -> None:
        """The batch's backward pass is over; ``loss`` is its ND loss, 0-dim, unweighted."""
        assert self._expected is not None
        if self._of_parameter is not None:
            self._of_parameter.remove()
            self._of_parameter = None
        found = self._expected.compare({"loss": loss, **self._arrived})
        if self._off is not None:
            found[0, -1] = torch.maximum(found[0, -1], self._off)
        self._found.append(found)
        self._upstream, self._expected, self._arrived = None, None, {}

    def answer(self, accelerator: Accelerator) -> dict[str, Any]:
        """What the batches since the last answer showed; every process must call this.

        Returns:
            "differences" and "tolerances", by `QUANTITIES`, of the batch of all processes that is
            worst by their quotient; "agrees": whether no difference is larger than its tolerance.
        """
        found = accelerator.gather(torch.stack(self._found))
        self._found.clear()
        self._are_untrained = False  # the step is about to be, or has been
        # Infinite by an infinite tolerance is not wrong.
        shares = (found[:, 0] / found[:, 1]).nan_to_num(0, torch.inf)
        worst = shares.argmax(dim=0, keepdim=True)
        differences, tolerances = (found[:, place].gather(0, worst)[0].tolist() for place in (0, 1))
        return {
            "differences": dict(zip(QUANTITIES, differences, strict=True)),
            "tolerances": dict(zip(QUANTITIES, tolerances, strict=True)),
            "agrees": all(map(float.__le__, differences, tolerances)),
        }

    @torch.compiler.disable
    def _before(self, nd: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._upstream is None:
            return None
        student, *others = inputs
        # Only the loss reads this view: what leaves it is the loss's gradient alone, after
        # whatever hooks there are.
        own = student.view_as(student)
        own.grad_fn.register_hook(self._keep_gradient)
        return own, *others

    def _keep_gradient(self, grad_inputs: tuple[Tensor, ...], grad_outputs: Any) -> None:
        self._arrived["gradient"] = grad_inputs[0]

    @torch.compiler.disable
    def _after(self, nd: ndfast.NDLoss, inputs: tuple[Any, ...], loss: Tensor) -> None:
        if self._upstream is None:
            return
        means = nd.class_means
        learnable = isinstance(means, nn.Parameter)
        if learnable:
            self._of_parameter = means.register_hook(self._keep_means_gradient)
        else:
            self._arrived["class_means"] = means
        with torch.no_grad(), torch.autocast(means.device.type, enabled=False):
            self._expected = _Expected(
                nd, inputs, self._upstream, None if learnable else self._class_means
            )
            if self._are_untrained:
                norms = vector_norm(self._class_means, dim=1)
                self._off = _errors(means, self._class_means, norms).max()

    def _keep_means_gradient(self, gradient: Tensor) -> None:
        self._arrived["class_means"] = gradient


class _Definition(NamedTuple):
    """What the reference gives for a batch, in the dtype of its sums."""

    loss: Tensor  # [1, 1], unweighted
    gradient: Tensor  # of the features, [N, D]
    tied: Tensor  # the same if the other norm were the larger
    class_means: Tensor  # [K, D]: their gradient, or what they must be


class _Expected:
    """What a batch must give, in float64, and how far from it is right.

    Args:
        nd: the module, with its class means as they are.
        inputs: its student, teacher and target.
        upstream: the gradient of the loss, unweighted.
        class_means: [K, D], what the module's must be; None for learnable ones.
    """

    def __init__(
        self,
        nd: ndfast.NDLoss,
        inputs: tuple[Any, ...],
        upstream: float,
        class_means: Tensor | None,
    ) -> None:
        rows = _rows(nd, inputs, torch.float64)
        centres = reference.gather_centres(*rows.centres, torch.float64)
        terms = reference.row_terms(rows.student, rows.teacher, centres, rows.eps)
        n_s, n_t, n_c, m = terms[:4]
        self._exact = _define(rows, upstream, class_means)
        self._is_tied = (n_s - n_t).abs() <= _TIE * m
        is_lost = torch.stack([n_s, n_t, n_c]).nan_to_num()
        is_lost = ((is_lost > _LARGEST_NORM) | ((is_lost > 0) & (is_lost < _LEAST_NORM))).any(dim=0)
        # The terms before they cancel; a mixed centre is as much less precise as its own do.
        norms = vector_norm(rows.class_means, dim=1, keepdim=True)
        whole = reference.gather_centres(norms, *rows.centres[1:], torch.float64)[:, 0]
        saved = reference.forward(*rows, 4, False)[1]
        alpha = reference.coefficients_of(saved, 1, len(rows.student))[0].abs()
        alpha = torch.where(is_lost & (alpha != 0), torch.inf, alpha)  # an ignored row's is 0
        of_means = norms[:, 0]
        if class_means is None:
            of_means = _add_up(upstream * alpha * n_s * (whole / n_c).nan_to_num(1, 1), rows)
        self._scales = {
            "loss": (alpha * whole * m).nansum()[None],
            "gradient": upstream * alpha * whole,
            "class_means": of_means,
        }
        self._tolerances = of_means.new_full((len(QUANTITIES),), TOLERANCE)
        student = inputs[0]
        if student.dtype in _HALVES:
            rounded = _define(_rows(nd, inputs, torch.float32), upstream, class_means)
            theirs = rounded._replace(gradient=rounded.gradient.to(student.dtype))
            errors = self._differences(theirs._asdict())
            self._tolerances = (2 * errors).clamp_min(TOLERANCE)

    def compare(self, got: Mapping[str, Tensor]) -> Tensor:
        """[2, 3]: differences and tolerances of the `QUANTITIES`; what is missing is infinite."""
        return torch.stack([self._differences(got), self._tolerances])

    def _differences(self, got: Mapping[str, Tensor]) -> Tensor:
        largest = []
        for name, scale in self._scales.items():
            if name not in got:
                largest.append(scale.new_tensor(torch.inf))
                continue
            found = _errors(got[name], getattr(self._exact, name), scale)
            if name == "gradient":
                other = _errors(got[name], self._exact.tied, scale)
                found = torch.where(self._is_tied, torch.minimum(found, other), found)
            largest.append(found.max())
        return torch.stack(largest)


def _rows(nd: ndfast.NDLoss, inputs: tuple[Any, ...], dtype: torch.dtype) -> Rows:
    """The module's arguments as the reference takes them, its weight aside."""

    def cast(value: Tensor) -> Tensor:
        return value.detach().to(dtype)

    student, teacher, target = inputs
    if isinstance(target, ndfast.Mix) and isinstance(target.lam, Tensor):
        target = replace(target, lam=cast(target.lam))
    rows, _ = check_and_flatten(
        cast(student), cast(teacher), cast(nd.class_means), target, 1.0, None, "mean",
        nd.ignore_index, nd.eps, False, None,
    )  # fmt: skip
    return rows


def _define(rows: Rows, upstream: float, class_means: Tensor | None) -> _Definition:
    """The reference's results; with ``class_means`` these, else the gradient of the rows'."""
    loss, saved, _ = reference.forward(*rows, 4, False)
    _, beta, gamma, _ = reference.coefficients_of(saved, 4, len(rows.student))
    centres = reference.gather_centres(*rows.centres, saved.dtype)
    n_s, n_t = reference.row_terms(rows.student, rows.teacher, centres, rows.eps)[:2]
    # ∂s has p/m²/n_s where the student is the larger, ∂t has p/m²/n_t where the teacher is.
    tied = saved.clone()
    reference.coefficients_of(tied, 4, len(rows.student))[1] = torch.where(
        beta != 0, 0, (gamma * n_t / n_s).nan_to_num()
    )
    grad_loss = loss.new_tensor(upstream)
    gradient, other = (
        reference.backward(grad_loss, each, *rows.inputs, None, True, False, False)[0]
        for each in (saved, tied)
    )
    if class_means is None:
        needs = False, False, True
        class_means = reference.backward(grad_loss, saved, *rows.inputs, None, *needs)[2]
    return _Definition(loss.reshape(1, 1), gradient, other, class_means)


def _add_up(values: Tensor, rows: Rows) -> Tensor:
    """The rows' values [N] by class, [K]; those of an ignored row are 0, those of NaN left out."""
    sums = values.new_zeros(len(rows.class_means))
    for labels in (rows.target, rows.target_b):
        if labels is not None:
            sums.index_add_(0, labels.long().clamp_min(0), values.nan_to_num(0, torch.inf))
    return sums


def _errors(got: Tensor, exact: Tensor, scale: Tensor) -> Tensor:
    """Each row's error relative to its scale; infinite where one is finite and the other is not."""
    got = got.detach().reshape(exact.shape)
    largest = torch.finfo(got.dtype).max
    # Past the largest number of its dtype it is infinite, and near it may be.
    fits = exact.abs() < 0.99 * largest
    difference = torch.where(fits, got.double() - exact, 0)
    error = vector_norm(difference, dim=1).nan_to_num(torch.inf)
    is_wrong = (~exact.isfinite() & got.isfinite()).any(dim=1)
    # Below float32's normal numbers nothing is precise.
    least = torch.finfo(torch.float32).tiny / TOLERANCE
    return torch.where(is_wrong, torch.inf, error / scale.nan_to_num(0).clamp_min(least))
