"""The methods, and the losses they add to cross entropy. The ND loss is `ndfast.nd_loss`."""

from __future__ import annotations

from typing import NamedTuple

from ndfast.train.losses.cross_entropy import cross_entropy
from ndfast.train.losses.dist import dist_loss
from ndfast.train.losses.dkd import dkd_loss
from ndfast.train.losses.kd import kd_loss
from ndfast.train.losses.review import ReviewKD, hcl_loss

__all__ = [
    "METHODS",
    "Method",
    "ReviewKD",
    "cross_entropy",
    "dist_loss",
    "dkd_loss",
    "hcl_loss",
    "kd_loss",
]


class Method(NamedTuple):
    """What a student learns from besides the labels.

    Args:
        distillation: "kd", "dkd", "dist", "reviewkd", or None.
        nd: whether the ND loss is added.
    """

    distillation: str | None
    nd: bool


METHODS = {
    "ce": Method(None, nd=False),
    "kd": Method("kd", nd=False),
    "kd++": Method("kd", nd=True),
    "dkd": Method("dkd", nd=False),
    "dkd++": Method("dkd", nd=True),
    "dist": Method("dist", nd=False),
    "dist++": Method("dist", nd=True),
    "reviewkd": Method("reviewkd", nd=False),
    "reviewkd++": Method("reviewkd", nd=True),
}
