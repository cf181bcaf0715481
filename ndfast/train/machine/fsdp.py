"""FSDP 2: the student's parameters, gradients and optimiser state spread over the processes."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, convert_outputs_to_fp32
from torch import nn
from torch.optim import Optimizer

from ndfast.train.errors import ConfigError

# How `accelerate launch` hands FSDP on, what holds where it says nothing, and what is taken here.
_SETTINGS = (
    ("FSDP_VERSION", "1", ("2",)),
    ("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT", ("FULL_STATE_DICT",)),
    # By size it would wrap modules of timm's whose parts are called in their place.
    ("FSDP_AUTO_WRAP_POLICY", "NO_WRAP", ("NO_WRAP", "TRANSFORMER_BASED_WRAP")),
    ("FSDP_OFFLOAD_PARAMS", "false", ("FALSE",)),
    # Computed again, dropout would be another, and normalisation would count a batch twice.
    ("FSDP_ACTIVATION_CHECKPOINTING", "false", ("FALSE",)),
    # Their gradients would stay each process's own.
    ("FSDP_IGNORED_MODULES", "none", ("NONE",)),
)


def is_asked_for() -> bool:
    """Whether `accelerate launch`, or somebody in its place, asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_settings(optimizer: str) -> None:
    """Raises ConfigError for what of FSDP is not done here, by a sentence that says what is."""
    for variable, default, taken in _SETTINGS:
        got = os.environ.get(variable, default).upper()
        if got not in taken:
            raise ConfigError(
                f"processes: got {variable}={got}; it takes {' or '.join(taken)}, by "
                f"`accelerate launch --{variable.lower()}`"
            )
    if optimizer == "lamb":  # pytorch_optimizer's clamps norms in place, which a DTensor refuses
        raise ConfigError("optimizer: got lamb together with FSDP; it takes sgd, adamw or lars")


def is_used(accelerator: Accelerator) -> bool:
    """Whether Accelerate has chosen it."""
    return accelerator.distributed_type is DistributedType.FSDP


def prepare(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> Any:
    """The model and the optimiser as Accelerate prepares them, by FSDP or not.

    Raises:
        ConfigError: FSDP is to wrap modules of a class that the model does not have.
    """
    if not is_used(accelerator):
        return accelerator.prepare(model, optimizer)
    # It takes no weights in NHWC; the images may be.
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    plugin = accelerator.state.fsdp_plugin
    # It is for weights that the main process alone has loaded, and fails on buffers.
    plugin.cpu_ram_efficient_loading = False
    # As DDP does it. Parameters cast by FSDP would meet a normalisation's float32 statistics.
    plugin.mixed_precision_policy = None
    if accelerator.native_amp:
        model.forward = convert_outputs_to_fp32(accelerator.autocast()(model.forward))
    try:
        return accelerator.prepare(model, optimizer)
    except ValueError as error:
        raise ConfigError(f"processes: FSDP cannot wrap the model: {error}") from error
