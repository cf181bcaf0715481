"""NDTrainer: KD++ in Hugging Face's Trainer. Written against transformers 5.23."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

import ndfast
from ndfast.integrations.features import classifiers_of
from ndfast.losses import kd_loss


class NDTrainer(Trainer):
    """A Trainer that adds KD and the ND loss to a classification model's own loss in training.

    Evaluation has the model's loss alone. `ndfast.NDStats`, averaged over the steps and processes
    since the last log, are logged beside "loss" as "nd_cosine", "nd_norm_ratio" and
    "nd_fraction_student_longer"; their values are not asked for at other steps.

    The loss is a mean over the rows of each micro-batch, and the Trainer averages these means where
    gradients are accumulated; a shorter last one weighs as much as the others.

    Between steps the networks have no hooks, and nothing of a batch is held.

    Source: KD++, arXiv 2305.17007.

    Args:
        *args: the Trainer's, the student first.
        teacher: takes the student's inputs; it is frozen, put in evaluation mode and moved to the
            Trainer's device.
        class_means: the teacher's mean feature of each class [K, D].
        classifier: name of the student's module whose input are the features [N, D]; "dropout"
            takes BERT's before its dropout, "classifier.out_proj" RoBERTa's.
        teacher_classifier: that of the teacher; by default the same name.
        projector: takes the student's features to the teacher's width. It becomes the student's
            module ``nd_projector``, so that it is trained and saved with it.
        nd_weight: the ND loss's factor.
        kd_weight: KD's factor.
        temperature: KD's.
        **kwargs: the Trainer's.

    Raises:
        ValueError: a network has no module of the name given, ``class_means`` is not [K, D], the
            teacher is the student itself, or the Trainer is set up in a way that this cannot serve.

    Examples:
        >>> trainer = NDTrainer(
        ...     student, arguments, train_dataset=data, teacher=teacher, class_means=means
        ... )
        >>> trainer.train()
    """

    def __init__(
        self,
        *args: Any,
        teacher: nn.Module,
        class_means: Tensor,
        classifier: str = "classifier",
        teacher_classifier: str | None = None,
        projector: nn.Module | None = None,
        nd_weight: float = 1.0,
        kd_weight: float = 1.0,
        temperature: float = 4.0,
        **kwargs: Any,
    ) -> None:
        for name in ("model_init", "compute_loss_func"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}: is not taken; give the model, or override compute_loss")
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError("n_gpu: DataParallel is not served; start a process a GPU by torchrun")
        device, student = self.args.device, self.model
        assert student is not None
        self._classifier, self._teacher_classifier = classifiers_of(
            student, classifier, teacher, teacher_classifier
        )
        self.teacher = teacher.requires_grad_(False).eval().to(device)
        self.nd = ndfast.NDLoss(class_means, nd_weight).to(device)
        self.kd_weight = kd_weight
        self.temperature = temperature
        self._projector: nn.Module = nn.Identity()
        if projector is not None:
            if self.args.world_size > 1 and self.args.ddp_find_unused_parameters is not False:
                raise ValueError("ddp_find_unused_parameters: must be False with a projector")
            self._projector = projector.to(device)
            student.add_module("nd_projector", projector)
        # The loss is a mean, not a sum over num_items_in_batch, whether or not the model's forward
        # takes that: some take it and pay it no heed.
        self.model_accepts_loss_kwargs = False
        self._stats_sum = torch.zeros(len(ndfast.NDStats._fields), device=device)
        self._stats_steps = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss, with the outputs where ``return_outputs``; see `Trainer.compute_loss`."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.get("labels")  # label smoothing takes them out of the inputs
        assert self.model is not None
        (loss, outputs), features = self._classifier.read(
            self.model, super().compute_loss, model, inputs, True, num_items_in_batch
        )
        inputs = {k: v for k, v in inputs.items() if k != "labels"}
        with torch.no_grad(), self.accelerator.autocast():
            teacher, teacher_features = self._teacher_classifier.read(
                self.teacher, self.teacher, **inputs
            )
        nd, stats = self.nd(self._projector(features), teacher_features, labels, return_stats=True)
        kd = kd_loss(outputs["logits"], teacher["logits"], self.temperature)
        self._stats_sum += torch.stack(stats)
        self._stats_steps += 1
        loss = loss + self.kd_weight * kd + nd
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """See `Trainer.log`; adds the means of `ndfast.NDStats` to the log of a training step."""
        if "loss" in logs and self._stats_steps:
            means = self.accelerator.reduce(self._stats_sum / self._stats_steps, "mean")
            stats = ndfast.NDStats(*means.tolist())
            logs = {**logs, **{f"nd_{name}": value for name, value in stats._asdict().items()}}
            self._stats_sum.zero_()
            self._stats_steps = 0
        super().log(logs, *args, **kwargs)
