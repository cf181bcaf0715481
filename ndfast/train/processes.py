"""The device and the processes, by Hugging Face Accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator

from ndfast.train.config import TrainConfig


def build_accelerator(config: TrainConfig) -> Accelerator:
    """What Accelerate finds: one process or those of torchrun and `accelerate launch`."""
    _join_restarted()
    precision = {None: None, "fp32": "no"}.get(config.precision, config.precision)
    return Accelerator(mixed_precision=precision)


def _join_restarted() -> None:
    """After torchrun has restarted the processes, those of gloo meet under a new name.

    Under the old one they find what the killed ones left in the store, and now and then wait for
    each other for good.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart == "0" or dist.is_initialized() or torch.cuda.is_available():
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=False
    )
    named = dist.PrefixStore(f"restart-{restart}", store)
    dist.init_process_group("gloo", store=named, rank=rank, world_size=world)


@contextmanager
def torch_settings(config: TrainConfig) -> Iterator[None]:
    """Settings for the length of a run; what was set before comes back."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    tf32 = not config.deterministic
    matmul_before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with torch.backends.cudnn.flags(
            enabled=True,
            deterministic=config.deterministic,
            benchmark=not config.deterministic,
            allow_tf32=tf32,
        ):
            yield
    finally:
        torch.set_num_threads(threads_before)
        torch.backends.cuda.matmul.allow_tf32 = matmul_before
