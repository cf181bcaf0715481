"""NDLoss for OpenMMLab's configs. Written against mmengine 0.10, mmrazor 1.0 and mmdet 3.3."""

from __future__ import annotations

from mmengine.registry import MODELS
from torch import Tensor, nn

import ndfast


# In mmengine's own registry, the parent of those of mmrazor, mmdet and mmpretrain: each finds it.
@MODELS.register_module()
class NDLoss(nn.Module):
    """`ndfast.NDLoss` with the arguments that a config and mmrazor's recorders give.

    A config names this file in ``custom_imports`` and then the class: ``type='NDLoss'``.

    Args:
        class_means: file of the teacher's class means [K, D], as `ndfast.load_class_means` takes
            it; [K + 1, D] with background last for the box heads of mmdet.
        loss_weight: the loss's factor.
        ignore_index: rows with this label give loss 0 and gradient 0; K leaves out the background
            of mmdet.
        backend: as in `ndfast.nd_loss`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file holds no class means.
    """

    def __init__(
        self,
        class_means: str,
        loss_weight: float = 1.0,
        ignore_index: int = -100,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        means = ndfast.load_class_means(class_means)
        self.nd = ndfast.NDLoss(means, loss_weight, ignore_index=ignore_index, backend=backend)

    def forward(
        self,
        s_feature: Tensor,
        t_feature: Tensor,
        gt_labels: Tensor,
        label_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, 0-dim; errors as for `ndfast.nd_loss`.

        Args:
            s_feature: the student's features [N, D] or [N, D, 1, 1].
            t_feature: the teacher's of the same rows; no gradient goes to them.
            gt_labels: class indices [N]; or class probabilities [N, K], as mmpretrain's mixup and
                cutmix have them.
            label_weights: a weight a row [N], as the heads of mmdet have them.
        """
        return self.nd(s_feature, t_feature.detach(), gt_labels, label_weights)
