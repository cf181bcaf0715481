"""NDDistillation under what copies, averages, moves and keeps it."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision_ops", reason="needs torchvision")  # torchmetrics looks for it
pytest.importorskip("lightning", reason="needs Lightning")

from held_features import seen_by
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from test_integration_lightning import D, Distillation, K, Network, data, loader, quiet_trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

import ndfast

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

AVERAGES: dict[str, Any] = {
    "equal": WeightAveraging,
    "ema": lambda: EMAWeightAveraging(decay=0.9),
    "stochastic": lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1),
}


def distillation(**more: Any) -> Distillation:
    return Distillation(Network(), Network(), torch.randn(K, D), **more)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def places(value: Any, at: str = "") -> list[str]:
    """Where a checkpoint has tensors."""
    if isinstance(value, dict):
        return [place for k, v in value.items() for place in places(v, f"{at}/{k}")]
    return [at] if isinstance(value, Tensor) else []


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_leave_the_teacher_alone_and_out_of_checkpoints(
    name: str, tmp_path: Path, seed: int
) -> None:
    module = distillation()
    teacher = state_of(module.teacher)
    callbacks = [AVERAGES[name](), ModelCheckpoint(tmp_path, filename="last", save_last=True)]
    quiet_trainer(tmp_path, max_epochs=3, callbacks=callbacks, enable_checkpointing=True).fit(
        module, loader(*data()), loader(*data())
    )
    torch.testing.assert_close(module.teacher.state_dict(), teacher, rtol=0, atol=0)
    assert not any(part.training for part in module.teacher.modules())

    path = tmp_path / "last.ckpt"
    found = places(torch.load(path, weights_only=False))
    assert "/state_dict/student.fc.1.weight" in found
    assert not any("teacher" in place for place in found)
    again = distillation()
    teacher = state_of(again.teacher)
    trainer = quiet_trainer(tmp_path, max_epochs=5, callbacks=[AVERAGES[name]()])
    trainer.fit(again, loader(*data()), ckpt_path=path, weights_only=False)
    torch.testing.assert_close(again.teacher.state_dict(), teacher, rtol=0, atol=0)


def test_weights_are_averaged(tmp_path: Path, seed: int) -> None:
    module = distillation(projector=nn.Linear(D, D))
    steps: list[list[Tensor]] = []

    class Recorded(WeightAveraging):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            steps.append([parameter.detach().clone() for parameter in module.parameters()])
            super().on_train_batch_end(trainer, pl_module, *args)

    quiet_trainer(tmp_path, callbacks=[Recorded()]).fit(module, loader(*data()))
    assert len(steps) == 3
    expected = [torch.stack(parts).mean(dim=0) for parts in zip(*steps, strict=True)]
    trained = [*module.student.parameters(), *module.projector.parameters()]
    assert len(expected) == len(trained)
    torch.testing.assert_close([parameter.detach() for parameter in trained], expected)


@pytest.mark.parametrize("twin", ["copied", "saved"])
def test_a_copy_after_a_step_trains_by_itself(twin: str, tmp_path: Path, seed: int) -> None:
    module = distillation()
    quiet_trainer(tmp_path).fit(module, loader(*data()), loader(*data()))
    module.train()
    for network in (module.student, module.teacher):
        network(data()[0])  # of the user's own
        copy.deepcopy(network)
    if twin == "copied":
        other = copy.deepcopy(module)
    else:
        torch.save(module, file := io.BytesIO())
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert other.teacher is not module.teacher
    before = state_of(module)
    quiet_trainer(tmp_path).fit(other, loader(*data()))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert not torch.equal(other.student.fc[1].weight, before["student.fc.1.weight"])


def test_nothing_of_a_batch_is_held(tmp_path: Path, seed: int) -> None:
    module = distillation()

    class Held(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            assert seen.held() == 0

        on_validation_batch_end = on_train_batch_end

    with seen_by(module.student.fc, module.teacher.fc) as seen:
        trainer = quiet_trainer(
            tmp_path, max_epochs=2, callbacks=[Held()], accumulate_grad_batches=2
        )
        trainer.fit(module, loader(*data()), loader(*data()))
        trainer.validate(module, loader(*data()), verbose=False)
        assert len(seen) == 2 + 2 * (3 + 3 + 3) + 3  # sanity; student, teacher, validation
        assert seen.held() == 0


def test_the_teacher_moves_along_and_is_no_submodule(seed: int) -> None:
    module = distillation()
    module.double()
    assert {p.dtype for p in module.teacher.parameters()} == {torch.float64}
    teacher = state_of(module.teacher)
    module.unfreeze()
    module.apply(lambda part: part.reset_parameters() if hasattr(part, "momentum") else None)
    update_bn([data()[0].double()], module)
    AveragedModel(module).update_parameters(module)
    torch.testing.assert_close(module.teacher.state_dict(), teacher, rtol=0, atol=0)
    assert not any(p.requires_grad for p in module.teacher.parameters())
    assert len([*module.parameters()]) == len([*module.student.parameters()])
    module.to("meta")
    assert all(p.is_meta for p in module.teacher.parameters())


def test_another_teacher_may_be_set(tmp_path: Path, seed: int) -> None:
    module = distillation()
    module.teacher = teacher = Network().train()
    quiet_trainer(tmp_path).fit(module, loader(*data()))
    assert not any(part.training for part in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(name.startswith("teacher") for name in module.state_dict())


def test_a_classifier_of_both_networks(seed: int) -> None:
    student, teacher = Network(), Network()
    student.fc = teacher.fc
    module = Distillation(student, teacher, torch.randn(K, D)).eval()
    logged: dict[str, Tensor] = {}
    module.log_dict = logged.update
    images, labels = data()
    module.training_step((images, labels), 0)
    features, expected = (each.body(images).flatten(1).detach() for each in (student, teacher))
    nd = ndfast.nd_loss(features, expected, module.nd.class_means, labels)
    torch.testing.assert_close(logged["train/nd"], nd)


def test_the_student_is_no_teacher(seed: int) -> None:
    student = Network()
    with pytest.raises(ValueError, match="teacher: got the student; expected a network of its own"):
        Distillation(student, student, torch.randn(K, D))
    assert student.training
    assert all(p.requires_grad for p in student.parameters())
