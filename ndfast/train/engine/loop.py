"""Any training: steps, epochs, and where it stands. Its losses and its tests are a subclass's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sized
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ndfast.train.config.detection_config import AnyConfig
from ndfast.train.data.batches import TrainingBatches, load
from ndfast.train.engine.finite import FiniteCheck
from ndfast.train.engine.loss_check import FIRST_STEPS, LossCheck
from ndfast.train.engine.optimizers import build_optimizer, learning_rate, step_at
from ndfast.train.engine.position import Bar, Log, Position, Silent
from ndfast.train.engine.skipping import Skipping
from ndfast.train.engine.stopwatch import Stopwatch
from ndfast.train.errors import ConfigError


def count_steps(config: AnyConfig, train: Sized, processes: int) -> int:
    """The optimiser's steps in an epoch over the images ``train``.

    Raises:
        ConfigError: there are none.
    """
    steps = len(train) // (config.batch_size * processes) // config.accumulate
    if steps == 0:
        most = len(train) // (processes * config.accumulate)
        raise ConfigError(
            f"batch_size: got {config.batch_size}; expected at most {most}, a process's share of "
            "the training images in a step"
        )
    return steps


class TrainingLoop(ABC):
    """Trains a module that gives losses, from wherever its position says.

    Attributes:
        distiller: what is trained, as it was given.
        model: the same as Accelerate prepared it.
        position: what `Accelerator.load_state` sets.
        average: the exponential average of the weights, or None.
        stopwatch: the time of a step by its parts.
        all_steps: of the optimiser, in the whole training.

    Raises:
        ConfigError: an epoch has fewer images than a step takes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: AnyConfig,
        data: Any,
        distiller: Any,
        check: LossCheck | None = None,
    ) -> None:
        self.accelerator, self.config, self.data = accelerator, config, data
        self.distiller, self.check = distiller, check
        self.log: Log = Silent()
        self.bar: Bar = Silent()
        self.batches = TrainingBatches(
            len(data.train),
            config.batch_size,
            config.seed,
            config.augmentation_seed,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self.steps_per_epoch = count_steps(config, data.train, accelerator.num_processes)
        self.all_steps = self.steps_per_epoch * config.epochs
        self.average: AveragedModel | None = None
        if config.ema is not None:
            average = get_ema_multi_avg_fn(config.ema)
            self.average = AveragedModel(distiller, multi_avg_fn=average)
        if config.compile:
            distiller.compile()
        optimizer = build_optimizer(distiller, config)
        self.model: nn.Module
        self.model, self.optimizer = accelerator.prepare(distiller, optimizer)
        self.position = Position(data.name, accelerator.num_processes)
        accelerator.register_for_checkpointing(self.position)
        if self.average is not None:
            accelerator.register_for_checkpointing(self.average)
        self.stopwatch = Stopwatch(accelerator.device)
        if distiller.nd is not None and not config.compile:
            self.stopwatch.watch("nd", distiller.nd)
        self.finite = FiniteCheck(accelerator)
        self.skipping = Skipping(self.model, self.position, config.max_skipped, config.seed)

    @abstractmethod
    def losses(self, batch: Any, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What is differentiated of a batch, the step's ``number``-th, and its parts for the log.

        The parts are detached; "nd" is without its factor where the loss is checked.
        """

    @abstractmethod
    def test(self) -> dict[str, Any]:
        """What the log's line of an epoch says of the model as it is at its end.

        Every process calls this.
        """

    def train(self, log: Log, bar: Bar, after: Callable[[bool], None]) -> None:
        """Trains until the last epoch, or ``config.max_steps``.

        Args:
            log: is told what happens.
            bar: shows it.
            after: is called after each step with whether it is an epoch's last, before the
                student is evaluated; the place for checkpoints.

        Raises:
            FloatingPointError: too many batches in a row had a loss or a gradient of NaN or Inf.
        """
        position, config = self.position, self.config
        self.log, self.bar = log, bar
        if self.check is not None and position.step:
            self.check.keep_class_means()
        while position.epoch < config.epochs:
            # All of them where it goes on from a checkpoint of the epoch's last step.
            done = first = position.step - position.epoch * self.steps_per_epoch
            if done < self.steps_per_epoch and self._finished():
                break
            start, seconds = perf_counter(), 0.0
            for step_batches in self.steps_of_epoch(first):
                self.step(step_batches)
                done += 1
                seconds = perf_counter() - start
                after(done == self.steps_per_epoch)
                if self._finished():
                    break
            if done == self.steps_per_epoch:
                self._end_epoch(config.batch_size * (done - first), seconds)

    def _finished(self) -> bool:
        return self.config.max_steps is not None and self.position.step >= self.config.max_steps

    def steps_of_epoch(self, first: int) -> Iterator[list[Any]]:
        """The batches of each step of this epoch, from step ``first`` on, on the CPU."""
        accumulate = self.config.accumulate
        self.batches.epoch, self.batches.start = self.position.epoch, first * accumulate
        self.model.train()
        loaded = load(self.data.train, self.batches, self.config.workers, self.accelerator.device)
        for _ in range(first, self.steps_per_epoch):
            self.stopwatch.start_step()
            with self.stopwatch.part("data"):
                step_batches = [next(loaded) for _ in range(accumulate)]
            yield step_batches

    def step(self, step_batches: list[Any]) -> None:
        """One step of the optimiser, of ``config.accumulate`` batches."""
        position, accumulate = self.position, len(step_batches)
        check = self.check if self._is_checked() else None
        self.skipping.begin_step()
        losses: list[dict[str, Tensor]] = []
        for number, batch in enumerate(step_batches):
            last = number == accumulate - 1
            if check is not None:
                check.begin(self._nd_factor() / accumulate)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                total, parts = self.losses(batch, number)
                self.finite.watch(total)
                losses.append({"loss": total.detach()} | parts)
                with self.stopwatch.part("backward"):
                    self.accelerator.backward(total / accumulate if accumulate > 1 else total)
            if check is not None:
                check.end(parts["nd"])
        rate = learning_rate(self.config, position.step, self.steps_per_epoch)
        with self.stopwatch.part("optimizer"):
            self.finite.clip_and_watch(self.model.parameters(), self.config.clip_norm)
            finite = self.finite.all_finite()
            if finite:
                step_at(self.optimizer, rate)
                if self.average is not None:
                    self.average.update_parameters(self.distiller)
        if check is not None:
            answer = check.answer(self.accelerator)
            self.log.write("check", step=position.step + 1, epoch=position.epoch + 1, **answer)
        self.skipping.end_step(finite, losses, self.log)
        self.optimizer.zero_grad()
        position.step += 1
        self.stopwatch.end_step()
        self._log_step(losses, rate)

    def _is_checked(self) -> bool:
        """Whether the step to come is one of the first, of a warm-up too, or is logged."""
        step = self.position.step
        starts = (0, self.steps_per_epoch) if self.config.nd_warmup else (0,)
        is_first = any(start <= step < start + FIRST_STEPS for start in starts)
        return is_first or (step + 1) % self.config.log_every == 0

    def _nd_factor(self) -> float:
        """What the unweighted ND loss counts for in what is differentiated."""
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        return self.config.nd_weight * self.warmup(self.config.nd_warmup) * scale

    def warmup(self, epochs: int) -> float:
        """What a loss that grows in so many epochs counts for now, 0 to 1."""
        return min(1.0, self.position.epoch / epochs) if epochs else 1.0

    def _log_step(self, losses: list[dict[str, Tensor]], rate: float) -> None:
        """Tells of a step that is due: the means of its losses over batches and processes."""
        position = self.position
        if position.step % self.config.log_every:
            self.bar.advance()
            return
        images = self.config.batch_size * self.accelerator.num_processes * len(losses)
        speed = images / self.stopwatch.seconds_per_step()
        names = list(losses[0])
        stacked = torch.stack(
            [torch.stack([found[name].double() for name in names]) for found in losses]
        )
        means = self.accelerator.reduce(stacked.mean(dim=0), "mean").tolist()
        parts = dict(zip(names, means, strict=True))
        loss = parts.pop("loss")
        accuracy = {"training": parts.pop("accuracy")} if "accuracy" in parts else {}
        self.log.write(
            "step",
            step=position.step,
            epoch=position.epoch + 1,
            loss=loss,
            losses=parts,
            lr=rate,
            images_per_s=speed,
        )
        self.bar.advance(loss=loss, **parts, **accuracy, images_per_s=speed)

    def _end_epoch(self, images: int, seconds: float) -> None:
        position = self.position
        tested = self.test()
        train = position.end_epoch(self.accelerator)
        images *= self.accelerator.num_processes * self.config.accumulate
        self.log.write(
            "epoch",
            epoch=position.epoch,
            step=position.step,
            train=train,
            **tested,
            parts_ms=self.stopwatch.medians_ms(),
            images_per_s=images / seconds if images else None,
            skipped=position.skipped,
        )
