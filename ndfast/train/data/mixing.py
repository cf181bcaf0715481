"""Mixup and cutmix, with labels that the losses and the class means are mixed by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import ndfast
from ndfast.train.errors import ConfigError


class Mixer:
    """Mixes the images of a batch with the same in reverse order.

    Mixup (Zhang et al., ICLR 2018, arXiv 1710.09412): lam·x + (1 − lam)·x′. Cutmix (Yun et al.,
    ICCV 2019, arXiv 1905.04899): a box of x′ over x. lam ~ Beta(alpha, alpha), one a batch.

    Args:
        mixup_alpha: alpha of mixup; 0 for none.
        cutmix_alpha: alpha of cutmix; 0 for none. With both, each batch takes one by even odds.

    Raises:
        ConfigError: both are 0.
    """

    def __init__(self, mixup_alpha: float, cutmix_alpha: float) -> None:
        if not (mixup_alpha > 0 or cutmix_alpha > 0):
            raise ConfigError(
                f"mixup and cutmix: got {mixup_alpha} and {cutmix_alpha}; one of them takes more "
                "than 0"
            )
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha

    def __call__(
        self, images: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, ndfast.Mix]:
        """The mixed images and their labels; nothing is written into ``images``.

        Args:
            images: [N, C, H, W], or [N, C, L], of which cutmix takes a stretch for a box.
            labels: int64 [N].
            rng: decides everything.

        Returns:
            Images as the given ones, and labels whose lam is the share of the image itself,
            float32 of no dimension on the images' device; under cutmix it is exact.
        """
        takes_cutmix = self.cutmix_alpha > 0
        if takes_cutmix and self.mixup_alpha > 0:
            takes_cutmix = rng.random() < 0.5
        alpha = self.cutmix_alpha if takes_cutmix else self.mixup_alpha
        lam = rng.beta(alpha, alpha)
        partners = images.flip(0)  # needs no indices, which would have to be sent to a GPU
        if takes_cutmix:
            mixed, lam = _cutmix(images, partners, lam, rng)
        else:
            mixed = images.lerp(partners, 1 - lam)
        # torch.compile takes a number for a constant; torch.tensor would wait for the GPU.
        share = torch.full((), lam, dtype=torch.float32, device=images.device)
        return mixed, ndfast.Mix(labels, labels.flip(0), share)


def _cutmix(
    images: Tensor, partners: Tensor, lam: float, rng: np.random.Generator
) -> tuple[Tensor, float]:
    """The images with a box of their partners, and the share that is still their own.

    The box has the part 1 − lam of the area and its centre anywhere; what is outside is cut off.
    """
    sizes = images.shape[2:]
    scale = (1 - lam) ** (1 / len(sizes))
    box: list[Any] = [...]
    for size in sizes:
        side = round(size * scale)
        first = int(rng.integers(size)) - side // 2
        box.append(slice(max(first, 0), min(first + side, size)))
    mixed = images.clone()
    mixed[tuple(box)] = partners[tuple(box)]
    return mixed, 1 - mixed[0, 0][tuple(box)].numel() / sizes.numel()
