"""The training of a `Distiller`: steps, epochs, and where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from time import perf_counter

import numpy as np
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ndfast
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.data import Data
from ndfast.train.data.batches import TrainingBatches, load, mix_seeds
from ndfast.train.data.mixing import Mixer
from ndfast.train.distill.distiller import Distiller
from ndfast.train.distill.evaluation import evaluate, move, place, share_buffers
from ndfast.train.distill.kept_outputs import as_output
from ndfast.train.distill.teacher import Teacher
from ndfast.train.engine.finite import FiniteCheck
from ndfast.train.engine.loss_check import FIRST_STEPS, LossCheck
from ndfast.train.engine.optimizers import build_optimizer, learning_rate, step_at
from ndfast.train.engine.position import Bar, Log, Position, Silent
from ndfast.train.engine.skipping import Skipping
from ndfast.train.engine.stopwatch import Stopwatch
from ndfast.train.errors import ConfigError

MIXING = 1  # sets the seeds of mixup and cutmix apart from those of the batches


def count_steps(config: TrainConfig, data: Data, processes: int) -> int:
    """The optimiser's steps in an epoch.

    Raises:
        ConfigError: there are none.
    """
    steps = len(data.train) // (config.batch_size * processes) // config.accumulate
    if steps == 0:
        most = len(data.train) // (processes * config.accumulate)
        raise ConfigError(
            f"batch_size: got {config.batch_size}; expected at most {most}, a process's share of "
            "the training images in a step"
        )
    return steps


class Trainer:
    """Trains a distiller on the data, from wherever its position says.

    Args:
        accelerator: the device and the processes.
        config: everything that decides the training.
        data: what to train and test on.
        distiller: what is trained; not yet prepared by Accelerate.
        teacher: None where the method has none and nothing is measured against one.

    Attributes:
        model: the distiller as Accelerate prepared it.
        position: what `Accelerator.load_state` sets.
        average: the exponential average of the weights, or None.
        check: compares the ND loss with the reference, or None.
        stopwatch: the time of a step by its parts.

    Raises:
        ConfigError: an epoch has fewer images than a step takes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainConfig,
        data: Data,
        distiller: Distiller,
        teacher: Teacher | None,
    ) -> None:
        self.accelerator, self.config, self.data = accelerator, config, data
        self.teacher = teacher
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
        self.steps_per_epoch = count_steps(config, data, accelerator.num_processes)
        distiller = place(distiller, accelerator.device, config)
        self.average: AveragedModel | None = None
        if config.ema is not None:
            average = get_ema_multi_avg_fn(config.ema)
            self.average = AveragedModel(distiller, multi_avg_fn=average)
        if config.compile:
            distiller.compile()
        optimizer = build_optimizer(distiller, config)
        self.model, self.optimizer = accelerator.prepare(distiller, optimizer)
        self.position = Position(data.name, accelerator.num_processes)
        accelerator.register_for_checkpointing(self.position)
        if self.average is not None:
            accelerator.register_for_checkpointing(self.average)
        self.all_steps = self.steps_per_epoch * config.epochs
        self.stopwatch = Stopwatch(accelerator.device)
        if distiller.nd is not None and not config.compile:
            self.stopwatch.watch("nd", distiller.nd)
        self.check: LossCheck | None = None
        if config.check_loss and distiller.nd is not None:
            assert teacher is not None
            assert teacher.class_means is not None
            self.check = LossCheck(distiller.nd, teacher.class_means)
        self.mixer = Mixer(config.mixup, config.cutmix) if config.mixup or config.cutmix else None
        self.finite = FiniteCheck(accelerator)
        self.skipping = Skipping(self.model, self.position, config.max_skipped, config.seed)

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

    def evaluate(self) -> tuple[dict[str, float], dict[str, float] | None]:
        """The metrics on the test set, of the student and of its average if there is one."""
        found: list[dict[str, float]] = []
        for model in (self.model, self.average):
            if model is None:
                return found[0], None
            share_buffers(model)  # what is measured is what will be saved
            was_training = model.training
            model.eval()
            means = None if self.teacher is None else self.teacher.class_means
            if means is not None and means.shape[1] != self._width():
                means = None  # without a projector the features are not in the teacher's space
            metrics = evaluate(self.accelerator, model, self.data.test, self.config, means)
            if self.teacher is not None and means is not None:
                metrics["norm_ratio"] = metrics["norm"] / self.teacher.metrics["norm"]
            model.train(was_training)
            found.append(metrics)
        return found[0], found[1]

    def _width(self) -> int:
        distiller = self.accelerator.unwrap_model(self.model)
        projector = distiller.projector
        return distiller.network.dim if projector is None else projector[-1].out_features

    def steps_of_epoch(self, first: int) -> Iterator[list[tuple[Tensor, ...]]]:
        """The batches of each step of this epoch, from step ``first`` on, on the CPU.

        Each has images and labels, and logits and norms where a teacher's are kept.
        """
        accumulate = self.config.accumulate
        self.batches.epoch, self.batches.start = self.position.epoch, first * accumulate
        self.model.train()
        loaded = load(self.data.train, self.batches, self.config.workers, self.accelerator.device)
        for _ in range(first, self.steps_per_epoch):
            self.stopwatch.start_step()
            with self.stopwatch.part("data"):
                step_batches = [next(loaded) for _ in range(accumulate)]
            yield step_batches

    def step(self, step_batches: list[tuple[Tensor, ...]]) -> None:
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
                    self.average.update_parameters(self.accelerator.unwrap_model(self.model))
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
        return self.config.nd_weight * self._warmup(self.config.nd_warmup) * scale

    def losses(self, batch: tuple[Tensor, ...], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of a batch's losses with factors and warm-ups, and each without."""
        config, position = self.config, self.position
        device = self.accelerator.device
        images = move(batch[0], device, config)
        labels, *kept = (values.to(device, non_blocking=True) for values in batch[1:])
        targets: Tensor | ndfast.Mix = labels
        if self.mixer is not None:
            rank = self.accelerator.process_index
            seed = mix_seeds(MIXING, config.seed, position.step, number, rank)
            images, targets = self.mixer(images, labels, np.random.default_rng(seed))
        teacher = None
        if kept:
            teacher = as_output(*kept)
        elif self.teacher is not None:
            with self.stopwatch.part("teacher"), self.accelerator.autocast():
                teacher = self.teacher(images)
        with self.stopwatch.part("forward"):
            parts = self.model(images, targets, teacher)
        factors = {
            "ce": config.ce_weight,
            "distillation": config.distill_weight * self._warmup(config.distill_warmup),
            "nd": self._warmup(config.nd_warmup),
        }
        terms = [
            parts[name] if factor == 1 else factor * parts[name]
            for name, factor in factors.items()
            if name in parts
        ]
        found = {name: value.detach() for name, value in parts.items()}
        if "nd" in found:
            found["nd"] = found["nd"] / config.nd_weight
        return sum(terms[1:], terms[0]), found

    def _warmup(self, epochs: int) -> float:
        return min(1.0, self.position.epoch / epochs) if epochs else 1.0

    def _log_step(self, losses: list[dict[str, Tensor]], rate: float) -> None:
        position = self.position
        if position.step % self.config.log_every:
            self.bar.advance()
            return
        images = self.config.batch_size * self.accelerator.num_processes * len(losses)
        speed = images / self.stopwatch.seconds_per_step()
        position.log_step(self.accelerator, losses, rate, speed, self.log, self.bar)

    def _end_epoch(self, images: int, seconds: float) -> None:
        position = self.position
        test, average = self.evaluate()
        train = position.end_epoch(self.accelerator)
        self.bar.show(accuracy=test["accuracy"])
        self.log.write(
            "epoch",
            epoch=position.epoch,
            step=position.step,
            train=train,
            test=test,
            ema=average,
            parts_ms=self.stopwatch.medians_ms(),
            images_per_s=images * self.accelerator.num_processes * self.config.accumulate / seconds
            if images
            else None,
            skipped=position.skipped,
        )
