"""ReviewKD: the student's stages, each fused with the deeper ones, against the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndfast.arguments import check_float_tensor
from ndfast.losses.rows import at_least_float32


def hcl_loss(student_stages: Sequence[Tensor], teacher_stages: Sequence[Tensor]) -> Tensor:
    """The hierarchical context loss: mean squared differences of the maps averaged into grids.

        Σ_stages (Σ_l w_l · mean((P_l f_s - P_l f_t)²)) / Σ_l w_l

    P_l averages a map into a grid of l by l. The first level is the map as it is, with weight 1;
    then come l = 4, 2, 1, those below the longer side of the map, each with half the weight of the
    level before. A side shorter than l stays as it is.

    With no row the loss is 0 with zero gradient. An Inf or a NaN in a stage makes it Inf or NaN.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044,
    section 3; levels and weights as in the authors' code, where all maps are square.

    Args:
        student_stages: [N, C, H, W] each, of any floating-point dtype.
        teacher_stages: of the same shapes; constants, no gradient goes to them.

    Returns:
        The loss, 0-dim, float32 (float64 if any stages are).

    Raises:
        TypeError: a stage is no floating-point tensor.
        ValueError: the stages differ in number, or are none; one is not [N, C, H, W], or the
            teacher's of another shape: none are broadcast.
    """
    if not 0 < len(student_stages) == len(teacher_stages):
        raise ValueError(
            f"teacher_stages: got {len(teacher_stages)} for {len(student_stages)} of the student; "
            "expected as many, and at least one"
        )
    losses = []
    for index, (student, teacher) in enumerate(zip(student_stages, teacher_stages, strict=True)):
        _check_stage(index, student, teacher)
        # Averaging is linear: the difference of the averages is the average of the differences.
        difference = at_least_float32(student) - at_least_float32(teacher.detach())
        if not len(difference):
            losses.append(difference.sum())
            continue
        height, width = difference.shape[2:]
        loss, weight, weights = difference.square().mean(), 1.0, 1.0
        for side in (4, 2, 1):
            if side < max(height, width):
                weight /= 2
                weights += weight
                grid = F.adaptive_avg_pool2d(difference, (min(height, side), min(width, side)))
                loss = loss + weight * grid.square().mean()
        losses.append(loss / weights)
    return torch.stack(losses).sum()


def _check_stage(index: int, student: Tensor, teacher: Tensor) -> None:
    for name, stage in (("student_stages", student), ("teacher_stages", teacher)):
        check_float_tensor(f"{name}[{index}]", stage)
    if student.ndim != 4 or not student.shape[1:].numel():
        raise ValueError(
            f"student_stages[{index}]: got shape {list(student.shape)}; expected [N, C, H, W] with "
            "C, H, W > 0"
        )
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher_stages[{index}]: got shape {list(teacher.shape)}; expected "
            f"{list(student.shape)}, that of student_stages[{index}]"
        )


class ReviewKD(nn.Module):
    """ReviewKD: the student's stages, each fused with the deeper ones, against the teacher's.

    From the deepest stage upwards, each is fused with what the deeper ones gave and brought to the
    teacher's size and channels, where `hcl_loss` compares them. The deepest stage are the pooled
    features, as [N, D, 1, 1].

    The parameters are trained with the student and of no use afterwards. Training needs N of at
    least 2, for the batch normalisation of the features.

    Source: as of `hcl_loss`.

    Args:
        student_channels: of each stage from high to low resolution, and last the features' width D.
        teacher_channels: the same of the teacher.
        mid_channels: what the stages are fused in; by default the student's D, but at most 512, as
            mdistiller and KD++ have it on CIFAR-100.
        before_fusion: what the student's stages go through first; by default nothing. The authors
            take a student's stages after their activation, and a teacher's before it.

    Raises:
        ValueError: student and teacher differ in their number of stages, or have none.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        mid_channels: int | None = None,
        before_fusion: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < len(student_channels) == len(teacher_channels):
            raise ValueError(
                f"teacher_channels: got {len(teacher_channels)} for {len(student_channels)} of the "
                "student; expected as many, and at least one"
            )
        if mid_channels is None:
            mid_channels = min(512, student_channels[-1])
        self.before_fusion = before_fusion
        pairs = reversed(list(zip(student_channels, teacher_channels, strict=True)))
        self.fusions = nn.ModuleList(
            _Fusion(ours, mid_channels, theirs, deepest=not index)
            for index, (ours, theirs) in enumerate(pairs)
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The loss of a batch.

        Args:
            student: the stages from high to low resolution, [N, C, H, W] or, of 1-D data,
                [N, C, L]; and last the pooled features [N, D].
            teacher: the same; constants, no gradient goes to them.

        Returns:
            The loss, 0-dim, float32 (float64 if any stages are). With no row it is 0.

        Raises:
            TypeError, ValueError: the stages are not as many as the channels that the module was
                built for; or as of `hcl_loss`, for the rows or channels of the teacher's.
        """
        for name, maps in (("student", student), ("teacher", teacher)):
            if len(maps) != len(self.fusions):
                raise ValueError(
                    f"{name}: got {len(maps)} stages and features; expected {len(self.fusions)}"
                )
        theirs = _deepest_first(teacher)
        *stages, features = student
        if self.before_fusion is not None:
            stages = [self.before_fusion(stage) for stage in stages]
        ours = _deepest_first([*stages, features])
        fused: Tensor | None = None
        reviewed = []
        for fusion, stage, goal in zip(self.fusions, ours, theirs, strict=True):
            fused, result = fusion(stage, fused, goal.shape[2:])
            reviewed.append(result)
        return hcl_loss(reviewed, theirs)


class _Fusion(nn.Module):
    """Attention-based fusion (ABF) of a stage with what the deeper ones gave, if there are any."""

    def __init__(self, channels: int, mid_channels: int, out_channels: int, deepest: bool) -> None:
        super().__init__()
        inner = nn.Conv2d(channels, mid_channels, 1, bias=False)
        outer = nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False)
        for convolution in (inner, outer):
            nn.init.kaiming_uniform_(convolution.weight, a=1)  # the authors'; PyTorch has a = √5
        self.inner = nn.Sequential(inner, nn.BatchNorm2d(mid_channels))
        self.outer = nn.Sequential(outer, nn.BatchNorm2d(out_channels))
        self.attention: nn.Module = nn.Identity()
        if not deepest:
            self.attention = nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid())

    def forward(
        self, stage: Tensor, deeper: Tensor | None, size: torch.Size
    ) -> tuple[Tensor, Tensor]:
        """Gives the fused maps, for the next stage, and the same in the teacher's channels."""
        maps = self.inner(stage)
        if deeper is not None:
            deeper = F.interpolate(deeper, maps.shape[2:], mode="nearest")
            shares = self.attention(torch.cat([maps, deeper], dim=1))
            maps = maps * shares[:, :1] + deeper * shares[:, 1:]
        if maps.shape[2:] != size:
            maps = F.interpolate(maps, size, mode="nearest")
        return maps, self.outer(maps)


def _deepest_first(maps: Sequence[Tensor]) -> list[Tensor]:
    *stages, features = maps
    stages = [stage.unsqueeze(2) if stage.ndim == 3 else stage for stage in stages]
    return [features[:, :, None, None], *reversed(stages)]
