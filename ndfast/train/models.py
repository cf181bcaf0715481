"""The networks. Each returns its penultimate features [N, D] and its logits [N, K]."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Stages of convolution, batch normalisation and SiLU; a global mean; a linear classifier.

    Every stage but the first halves the resolution. SiLU because it is smooth: with ReLU the first
    activation whose sign flips by rounding separates two float32 trainings for good, and the
    comparison of the fused loss with the reference could not span a whole training.

    Args:
        image_shape: of one input, [1, L] or [1, H, W].
        channels: of each stage; the last is D.
        num_classes: K.
        kernel_size: of each convolution, odd.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        channels: tuple[int, ...],
        num_classes: int,
        kernel_size: int,
    ) -> None:
        super().__init__()
        one_dimensional = len(image_shape) == 2
        convolution = nn.Conv1d if one_dimensional else nn.Conv2d
        normalisation = nn.BatchNorm1d if one_dimensional else nn.BatchNorm2d
        layers: list[nn.Module] = []
        inputs = image_shape[0]
        for stage, outputs in enumerate(channels):
            stride = 1 if stage == 0 else 2
            layers += [
                convolution(inputs, outputs, kernel_size, stride, kernel_size // 2, bias=False),
                normalisation(outputs),
                nn.SiLU(),
            ]
            inputs = outputs
        self.stages = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the features [N, D] and the logits [N, K]."""
        features = self.stages(images).flatten(2).mean(dim=2)
        return features, self.classifier(features)


class Student(nn.Module):
    """A network whose features are projected to the teacher's width for the ND loss.

    The projector is the authors': BatchNorm1d, Dropout(0.5), Linear. As in their code only the ND
    loss sees what it gives; the classifier reads the network's own features.

    Args:
        network: returns features [N, D_s] and logits [N, K].
        dim: D_s.
        teacher_dim: D.
        projection: "trained" with the network by the ND loss; or a "probe", which learns to read
            the network's features while no gradient reaches the network; or "none".
    """

    def __init__(
        self,
        network: nn.Module,
        dim: int,
        teacher_dim: int,
        projection: Literal["trained", "probe", "none"],
    ) -> None:
        super().__init__()
        self.network = network
        self.projection = projection
        if projection != "none":
            self.projector = nn.Sequential(
                nn.BatchNorm1d(dim), nn.Dropout(0.5), nn.Linear(dim, teacher_dim)
            )

    def forward(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Returns the projected features [N, D], or None without a projector; the logits [N, K]."""
        features, logits = self.network(images)
        if self.projection == "none":
            return None, logits
        if self.projection == "probe":
            features = features.detach()
        return self.projector(features), logits
