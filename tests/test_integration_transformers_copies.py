"""NDTrainer under what averages, checkpoints and keeps the networks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision_ops", reason="needs torchvision")  # transformers looks for it
pytest.importorskip("transformers", reason="needs transformers")

from held_features import seen_by
from test_integration_transformers import D, K, rows, trainer, vit
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback


def test_an_average_by_a_callback(tmp_path: Path, seed: int) -> None:
    student, teacher = vit(), vit()
    steps: list[Tensor] = []

    class Average(TrainerCallback):
        def on_step_end(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
            model(torch.randn(2, 1, 8, 8))  # of the user's own
            if not steps:
                self.average = AveragedModel(model)
            self.average.update_parameters(model)
            self.average(torch.randn(2, 1, 8, 8))
            steps.append(model.classifier.weight.detach().clone())

    callback = Average()
    data = rows(student, 12)
    trainer(
        student, tmp_path, teacher, train_dataset=data, max_steps=3, callbacks=[callback]
    ).train()
    expected = torch.stack(steps).mean(dim=0)
    torch.testing.assert_close(callback.average.module.classifier.weight.detach(), expected)
    copy.deepcopy(teacher)


def test_nothing_of_a_batch_is_held(tmp_path: Path, seed: int) -> None:
    student, teacher = vit(), vit()

    class Held(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            assert seen.held() == 0

        on_prediction_step = on_step_end

    ours = trainer(
        student,
        tmp_path,
        teacher,
        train_dataset=rows(student, 8),
        eval_dataset=rows(student, 8),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=2,
        eval_strategy="epoch",
        callbacks=[Held()],
    )
    with seen_by(student.classifier, teacher.classifier) as seen:
        ours.train()
        assert len(seen) == 4 + 4 + 1  # student, teacher, evaluation
        assert seen.held() == 0


def test_gradient_checkpointing(tmp_path: Path, seed: int) -> None:
    teacher, means = vit(), torch.randn(K, D)
    students = [vit(num_hidden_layers=2)]
    students.append(copy.deepcopy(students[0]))
    data = rows(teacher, 4)
    for student, checkpointed in zip(students, (False, True), strict=True):
        trainer(
            student,
            tmp_path,
            teacher,
            class_means=means,
            train_dataset=data,
            gradient_checkpointing=checkpointed,
        ).train()
    torch.testing.assert_close(students[0].state_dict(), students[1].state_dict())
