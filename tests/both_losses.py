"""nd_loss and attach_nd_loss as one to a test, and their gradient by the definition."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

import ndfast
from ndfast.backends import reference


def attached(*arguments: Any, **options: Any) -> Tensor:
    """The loss of attach_nd_loss, whose features are used too, with a gradient of 0."""
    features, loss = ndfast.attach_nd_loss(*arguments, **options)
    return loss + (0 * features).sum()


losses = pytest.mark.parametrize("loss", [ndfast.nd_loss, attached])


def definition(
    student: Tensor, teacher: Tensor, class_means: Tensor, labels: Tensor, weights: Tensor
) -> Tensor:
    """The gradient of the weighted mean, in float64."""
    leaf = student.double().requires_grad_()
    rows = reference.row_loss(leaf, teacher.double(), class_means[labels].double())
    (weights.double() * rows).sum().div(weights.double().sum()).backward()
    assert leaf.grad is not None
    return leaf.grad.float()
