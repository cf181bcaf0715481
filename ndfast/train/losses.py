"""The methods, and the losses they add to cross entropy. The ND loss is `ndfast.nd_loss`."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Method(NamedTuple):
    """What a student learns from besides the labels."""

    kd: bool
    nd: bool


METHODS = {
    "ce": Method(kd=False, nd=False),
    "kd": Method(kd=True, nd=False),
    "kd++": Method(kd=True, nd=True),
}


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""Hinton's distillation loss, the mean over the rows of

    .. math:: T^2 \, \mathrm{KL}(\mathrm{softmax}(z_t / T) \,\Vert\, \mathrm{softmax}(z_s / T))

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv
    1503.02531.

    Args:
        student_logits: [N, K].
        teacher_logits: [N, K].
        temperature: T.

    Returns:
        The loss in nats, 0-dim.
    """
    divergence = F.kl_div(
        F.log_softmax(student_logits / temperature, dim=1),
        F.log_softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence
