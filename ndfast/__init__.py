"""ndfast: the fused loss of knowledge distillation by feature direction and norm (KD++)."""

from ndfast.dispatch import available_backends, use_backend
from ndfast.functional import nd_loss
from ndfast.module import NDLoss
from ndfast.labels import Mix

__version__ = "0.1.0"

__all__ = [
    "Mix",
    "NDLoss",
    "available_backends",
    "nd_loss",
    "use_backend",
]
