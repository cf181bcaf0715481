"""The losses that the ND loss is added to, in plain PyTorch; the ND loss is `ndfast.nd_loss`."""

from ndfast.losses.cross_entropy import cross_entropy
from ndfast.losses.dist import dist_loss
from ndfast.losses.dkd import dkd_loss
from ndfast.losses.kd import kd_loss
from ndfast.losses.review import ReviewKD, hcl_loss

__all__ = ["ReviewKD", "cross_entropy", "dist_loss", "dkd_loss", "hcl_loss", "kd_loss"]
