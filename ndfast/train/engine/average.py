"""An exponential average of a model's weights."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ndfast.train.models.weights import whole


class Average(AveragedModel):
    """The average, whole in every process, also where FSDP spreads the model over them.

    Args:
        model: as it is before Accelerate prepares it; it is copied.
        decay: in [0, 1), of what was averaged before, in each update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def update_parameters(self, model: nn.Module) -> None:
        """Takes in the model's parameters as they are now; every process must call this."""
        in_whole = SimpleNamespace(
            parameters=lambda: map(whole, model.parameters()), buffers=model.buffers
        )
        super().update_parameters(in_whole)  # type: ignore[arg-type]
