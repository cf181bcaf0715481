"""`ndfast` in which the processes of gloo get the FSDP that they ask for.

Accelerate offers it on accelerators alone, and trains by DistributedDataParallel elsewhere; all
that it does once it is chosen runs on the CPU as well.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from ndfast.cli import main
from ndfast.train.engine.loop import Trainer

init, train = AcceleratorState.__init__, Trainer.train


def choose_fsdp(
    state: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any
) -> None:
    """What Accelerate does where it finds GPUs."""
    init(state, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        state.distributed_type = DistributedType.FSDP
        if state._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(state._mixed_precision)
        state.fsdp_plugin = fsdp_plugin


def check_and_train(trainer: Trainer, *args: Any) -> None:
    assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    train(trainer, *args)


if __name__ == "__main__":
    AcceleratorState.__init__, Trainer.train = choose_fsdp, check_and_train
    sys.exit(main(sys.argv[1:]))
