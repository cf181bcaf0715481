"""What makes the ND loss wrong while a test lasts, most of it by 1 %."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ndfast import autograd, module, upstream
from ndfast.backends import native

Plant = Callable[[pytest.MonkeyPatch], None]


def wrong_loss(patch: pytest.MonkeyPatch) -> None:
    right = native.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        loss, *others = right(*arguments, **options)
        return 1.01 * loss, *others

    patch.setattr(native, "forward", forward)


def wrong_gradient(patch: pytest.MonkeyPatch) -> None:
    right = native.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        *others, gradient = right(*arguments, **options)
        return *others, 1.01 * gradient

    patch.setattr(native, "forward", forward)


def wrong_gathered_row(patch: pytest.MonkeyPatch) -> None:
    """One of ten rows as the kernel reads it, by 1 % of its length."""
    right = native.forward

    def forward(student: Tensor, teacher: Tensor, means: Tensor, *others: Any, **more: Any) -> Any:
        return right(student, teacher, with_wrong_row(means), *others, **more)

    patch.setattr(native, "forward", forward)


def with_wrong_row(means: Tensor) -> Tensor:
    wrong = means.detach().clone()
    off = torch.ones_like(wrong[3])
    off[::2] = -1
    wrong[3] += 0.01 * wrong[3].norm() / off.norm() * off
    return wrong


def wrong_kept_row(patch: pytest.MonkeyPatch) -> None:
    """In the module, where its direction stays, and with that the loss."""
    right = module.NDLoss.__init__

    def init(self: module.NDLoss, *arguments: Any, **options: Any) -> None:
        right(self, *arguments, **options)
        with torch.no_grad():
            self.class_means[3] *= 1.01

    patch.setattr(module.NDLoss, "__init__", init)


def wrong_weight(patch: pytest.MonkeyPatch) -> None:
    right = module.NDLoss.__init__

    def init(self: module.NDLoss, means: Tensor, weight: float, **options: Any) -> None:
        right(self, means, 1.01 * weight, **options)

    patch.setattr(module.NDLoss, "__init__", init)


def wrong_value_alone(patch: pytest.MonkeyPatch) -> None:
    right = module.nd_loss

    def nd_loss(*arguments: Any, **options: Any) -> Tensor:
        loss = right(*arguments, **options)
        return loss + 0.01 * loss.detach()

    patch.setattr(module, "nd_loss", nd_loss)


def wrong_gradient_alone(patch: pytest.MonkeyPatch) -> None:
    right = module.NDLoss.forward

    def forward(self: module.NDLoss, *arguments: Any) -> Tensor:
        loss = right(self, *arguments)
        return loss + 0.01 * (loss - loss.detach())

    patch.setattr(module.NDLoss, "forward", forward)


def wrong_hook(patch: pytest.MonkeyPatch) -> None:
    """On the features as the loss sees them."""
    right = module.nd_loss

    def nd_loss(student: Tensor, *arguments: Any, **options: Any) -> Tensor:
        student.register_hook(lambda gradient: 1.01 * gradient)
        return right(student, *arguments, **options)

    patch.setattr(module, "nd_loss", nd_loss)


def wrong_function(patch: pytest.MonkeyPatch) -> None:
    right = autograd._NDLoss.backward

    def backward(ctx: Any, *gradients: Tensor) -> Any:
        student, *others = right(ctx, *gradients)
        return 1.01 * student, *others

    patch.setattr(autograd._NDLoss, "backward", staticmethod(backward))


def wrong_finish(patch: pytest.MonkeyPatch) -> None:
    right = native.finish_gradient_

    def finish_gradient_(gradient: Tensor, *arguments: Any) -> None:
        right(gradient, *arguments)
        gradient.mul_(1.01)

    patch.setattr(native, "finish_gradient_", finish_gradient_)
    for known in upstream.BY_DTYPE.values():  # of what is expected forward writes the gradient
        known.forget()


def wrong_backward(patch: pytest.MonkeyPatch) -> None:
    right = native.backward
    patch.setattr(native, "backward", lambda *rows: tuple(1.01 * each for each in right(*rows)))


def no_gradient(patch: pytest.MonkeyPatch) -> None:
    right = module.NDLoss.forward
    patch.setattr(
        module.NDLoss, "forward", lambda self, s, *others: right(self, s.detach(), *others)
    )


def no_number(patch: pytest.MonkeyPatch) -> None:
    right = native.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        *others, gradient = right(*arguments, **options)
        gradient[1] = torch.nan
        return *others, gradient

    patch.setattr(native, "forward", forward)
