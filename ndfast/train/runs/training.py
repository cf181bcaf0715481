"""A training in a folder: its log, and checkpoints that it goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ndfast.train.engine.loop import TrainingLoop
from ndfast.train.machine.progress import Bars
from ndfast.train.models.weights import weights_digest
from ndfast.train.runs import folder
from ndfast.train.runs.checkpoints import load_newest_checkpoint, save_checkpoint
from ndfast.train.runs.records import RunLog


def train_in(
    out: Path, title: str, trainer: TrainingLoop, trained: nn.Module, bars: Bars
) -> tuple[str, dict[str, Any]]:
    """Trains to the end, from the newest checkpoint where there is one; every process calls this.

    Returns:
        The SHA-256 of the weights of ``trained``, which the log has too, and the environment.

    Raises:
        CheckpointError: a checkpoint or the log cannot be written.
        FloatingPointError: as `TrainingLoop.train`; or the weights came to be NaN or infinite.
    """
    config, accelerator, position = trainer.config, trainer.accelerator, trainer.position
    checkpoints = out / folder.CHECKPOINTS
    # One that is not to be gone on with was set aside as the run's folder was opened.
    saved = position.step if load_newest_checkpoint(accelerator, checkpoints, bars.note) else None
    environment = folder.run_environment(accelerator)
    log = RunLog(out, config.tensorboard, saved, accelerator.is_main_process)

    def save() -> None:
        nonlocal saved
        trainer.finite.check_weights(trainer.model, position.step)
        position.settle(accelerator)
        name = save_checkpoint(accelerator, checkpoints, position.step, config.keep_checkpoints)
        log.write("checkpoint", step=position.step, name=name)
        saved = position.step

    def after_step(epoch_ends: bool) -> None:
        every = config.checkpoint_every
        if epoch_ends if every is None else position.step % every == 0:
            save()

    with log, bars.run(title, trainer.all_steps, position.step) as bar:
        log.write(
            "start" if saved is None else "resume",
            step=position.step,
            epoch=position.epoch + 1,
            environment=environment,
        )
        trainer.train(log, bar, after_step)
        if saved != position.step:
            save()
        digest = weights_digest(trained)
        log.write("end", step=position.step, sha256=digest)
    return digest, environment
