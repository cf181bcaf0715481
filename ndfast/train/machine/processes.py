"""The device and the processes, by Hugging Face Accelerate."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from rich.console import Console

from ndfast.train.config.detection_config import AnyConfig
from ndfast.train.errors import ConfigError
from ndfast.train.interrupts import dropped_interrupts_come_again
from ndfast.train.machine.allocator import keep_freed_memory
from ndfast.train.machine.progress import Bars

_KINDS = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
)
# What else `accelerate launch` can ask for, by a variable that is true.
_NOT_TAKEN = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a ParallelismConfig",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}


def build_accelerator(config: AnyConfig) -> Accelerator:
    """What Accelerate finds: one process or those of torchrun and `accelerate launch`.

    Of what the environment says beside, the precision counts where the config names none.

    Raises:
        ConfigError: there is no such precision, or the device cannot compute in it; or the
            processes are not joined as DistributedDataParallel needs them, or are to share the
            work in another way.
    """
    for variable, what in _NOT_TAKEN.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise ConfigError(f"processes: got {what} of Accelerate, by {variable}; expected DDP")
    _join_restarted()
    precision = resolve_precision(config.precision)
    try:
        accelerator = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            # The trainer accumulates and compiles itself. Without these Accelerate does so as well
            # where the environment has it, and divides each loss once more.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
        )
    except (ImportError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"processes: Accelerate cannot start: {reason}") from error
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    # Accelerate takes it, and trains in float32.
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("precision: got fp16; on the CPU expected fp32 or bf16")
    kind = accelerator.distributed_type
    if kind not in _KINDS:
        raise ConfigError(f"processes: got {kind.value} of Accelerate; expected DDP")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ConfigError(
            f"processes: {launched} were launched, and Accelerate has joined "
            f"{accelerator.num_processes}; ACCELERATE_USE_CPU=true joins them on the CPU"
        )
    return accelerator


def resolve_precision(asked: str | None) -> str:
    """The precision that is asked for, else what `accelerate launch` says: fp32, bf16 or fp16.

    A run keeps it in its config, so that it goes on in no other.

    Raises:
        ConfigError: it is another.
    """
    precision = asked or os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    precision = "fp32" if precision == "no" else precision
    if precision not in ("fp32", "bf16", "fp16"):
        raise ConfigError(f"precision: got {precision} of Accelerate; expected fp32, bf16 or fp16")
    return precision


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


def shut_down(accelerator: Accelerator) -> None:
    """Ends all processes at once: one that is gone early looks like one that failed.

    The trainings are over. What DistributedDataParallel holds of the processes' group goes first:
    else the group ends with it, at Python's end, and waits for a thread of gloo's, which may wait
    for Python to let go of an object of the last collective's.
    """
    accelerator.wait_for_everyone()
    gc.collect()
    accelerator.end_training()


@contextmanager
def session(config: AnyConfig, console: Console) -> Iterator[tuple[Accelerator, Bars]]:
    """A command's processes from their start to their end, its settings of torch and its bars.

    Yields:
        What `build_accelerator` gives, and the bars, which the main process shows.

    Raises:
        ConfigError: as `build_accelerator`.
    """
    accelerator = build_accelerator(config)
    with torch_settings(config), Bars(console, accelerator.is_main_process) as bars:
        yield accelerator, bars
    shut_down(accelerator)


@contextmanager
def torch_settings(config: AnyConfig) -> Iterator[None]:
    """Settings for the length of a run; what was set before comes back."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    tf32 = not config.deterministic
    matmul_before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with (
            torch.backends.cudnn.flags(
                enabled=True,
                deterministic=config.deterministic,
                benchmark=not config.deterministic,
                allow_tf32=tf32,
            ),
            dropped_interrupts_come_again(),
        ):
            yield
    finally:
        torch.set_num_threads(threads_before)
        torch.backends.cuda.matmul.allow_tf32 = matmul_before
