"""ndfast: the fused loss of knowledge distillation by feature direction and norm (KD++)."""

from ndfast import losses
from ndfast.class_means import ClassMeans
from ndfast.class_means_files import (
    load_class_means,
    load_class_means_metadata,
    save_class_means,
)
from ndfast.compat import DirectNormLoss
from ndfast.dispatch import available_backends, use_backend
from ndfast.functional import attach_nd_loss, nd_loss
from ndfast.labels import Mix
from ndfast.module import NDLoss
from ndfast.stats import NDStats
from ndfast.teacher_outputs import TeacherOutputs

__version__ = "0.1.0"

__all__ = [
    "ClassMeans",
    "DirectNormLoss",
    "Mix",
    "NDLoss",
    "NDStats",
    "TeacherOutputs",
    "attach_nd_loss",
    "available_backends",
    "load_class_means",
    "load_class_means_metadata",
    "losses",
    "nd_loss",
    "save_class_means",
    "use_backend",
]
