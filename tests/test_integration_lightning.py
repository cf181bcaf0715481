"""NDDistillation in Lightning's Trainer."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("torchvision_ops", reason="needs torchvision")  # torchmetrics looks for it
pytest.importorskip("lightning", reason="needs Lightning")

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import ndfast
from ndfast.integrations.lightning import NDDistillation
from ndfast.losses import kd_loss

# Lightning's advice has a class of its own, which pytest-xdist's controller would import, and with
# it a torchvision that may not fit this torch.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

N, D, K = 12, 8, 5
EXAMPLE = Path(__file__).parents[1] / "examples/lightning/train.py"
PARTS = {"loss", "ce", "kd", "nd", "cosine", "norm_ratio", "fraction_student_longer"}


class Network(nn.Module):
    """Its pooled features are [N, width, 1, 1], as a convolutional network may have them."""

    def __init__(self, width: int = D) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 4), nn.BatchNorm2d(width), nn.Dropout(0.5))
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(width, K))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images))


class Distillation(NDDistillation):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(dim=1) == batch[1]).float().mean())


class InMemory(Logger):
    """Keeps what it is given, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[int, dict[str, float]] = {}

    name, version = "memory", 0

    def log_hyperparams(self, *args: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.setdefault(step, {}).update(metrics)


class HostReads(TorchDispatchMode):
    """Counts values that are asked for on the host, each of which waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def data(n: int = N) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 4, 4), torch.randint(0, K, (n,))


def loader(images: Tensor, labels: Tensor, size: int = 4) -> DataLoader:
    return DataLoader(TensorDataset(images, labels), batch_size=size)


def quiet_trainer(folder: Path, **more: Any) -> Trainer:
    given = {"logger": False, "enable_checkpointing": False, "max_epochs": 1} | more
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **given,
    )


@pytest.mark.parametrize("soft", [False, True])
def test_a_step_is_the_sum_of_three_and_logs_them(soft: bool, tmp_path: Path, seed: int) -> None:
    student, teacher, means = Network().eval(), Network().eval(), torch.randn(K, D)
    images, labels = data()
    if soft:
        labels = torch.softmax(torch.randn(N, K), dim=1)
    module = Distillation(
        student, teacher, means, nd_weight=1.5, kd_weight=0.7, temperature=2.0
    ).eval()  # no dropout; Lightning leaves it so
    before = student.fc[1].weight.detach().clone()

    logits, features = student(images), student.body(images).flatten(1)
    ce = F.cross_entropy(logits, labels)
    kd = 0.7 * kd_loss(logits, teacher(images), 2.0)
    nd, stats = ndfast.nd_loss(
        features,
        teacher.body(images).flatten(1).detach(),
        means,
        labels,
        weight=1.5,
        return_stats=True,
    )
    loss = ce + kd + nd
    (body, fc) = torch.autograd.grad(loss, [student.body[0].weight, student.fc[1].weight])
    expected_body = (student.body[0].weight - 0.1 * body).detach()

    logger = InMemory()
    trainer = quiet_trainer(tmp_path, logger=logger, log_every_n_steps=1)
    trainer.fit(module, loader(images, labels, N))
    torch.testing.assert_close(student.fc[1].weight, before - 0.1 * fc)
    torch.testing.assert_close(student.body[0].weight, expected_body)
    expected = {"loss": loss, "ce": ce, "kd": kd, "nd": nd, **stats._asdict()}
    assert expected.keys() == PARTS
    for name, value in expected.items():
        assert logger.metrics[0][f"train/{name}"] == pytest.approx(value.item(), rel=1e-4)


def test_values_are_read_only_where_they_are_logged(tmp_path: Path, seed: int) -> None:
    def reads(every: int, steps: int) -> tuple[int, list[int]]:
        logger = InMemory()
        module = Distillation(Network(), Network(), torch.randn(K, D))
        trainer = quiet_trainer(tmp_path, logger=logger, log_every_n_steps=every)
        with HostReads() as host:
            trainer.fit(module, loader(*data(4 * steps)))
        return host.count, [step for step, all_ in logger.metrics.items() if "train/nd" in all_]

    few, logged = reads(every=100, steps=2)
    assert logged == []
    many, logged = reads(every=100, steps=20)
    assert logged == []
    # The loader's order is read once an epoch, whatever its length; nothing is read at a step.
    assert many == few
    at_four, logged = reads(every=5, steps=20)
    assert logged == [4, 9, 14, 19]
    assert at_four == few + 4 * len(PARTS)


def test_the_teacher_stays_as_it_is(tmp_path: Path, seed: int) -> None:
    student, teacher = Network(), Network().train()
    module = Distillation(student, teacher, torch.randn(K, D))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    quiet_trainer(tmp_path, max_epochs=2).fit(module, loader(*data()), loader(*data()))
    module.train()
    assert student.training
    assert not any(part.training for part in teacher.modules())
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)  # BatchNorm's too


def test_a_checkpoint_leaves_the_teacher_out_and_is_loaded_strictly(
    tmp_path: Path, seed: int
) -> None:
    means = torch.randn(K, D)
    module = Distillation(Network(), Network(), means)
    trainer = quiet_trainer(tmp_path)
    trainer.fit(module, loader(*data()))
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert {key.partition(".")[0] for key in saved["state_dict"]} == {"student", "nd"}

    again = Distillation(Network(), Network(), torch.zeros(K, D))
    teacher = {k: v.clone() for k, v in again.teacher.state_dict().items()}
    quiet_trainer(tmp_path).fit(again, loader(*data()), ckpt_path=path)  # ends where it is resumed
    torch.testing.assert_close(again.student.state_dict(), module.student.state_dict())
    torch.testing.assert_close(again.nd.class_means, means)
    torch.testing.assert_close(again.teacher.state_dict(), teacher, rtol=0, atol=0)

    del saved["state_dict"]["student.fc.1.bias"]
    torch.save(saved, path)
    with pytest.raises(RuntimeError, match=r"student\.fc\.1\.bias"):
        quiet_trainer(tmp_path).fit(again, loader(*data()), ckpt_path=path)


def test_a_projector_is_trained(tmp_path: Path, seed: int) -> None:
    projector = nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, 2 * D))
    before = projector[1].weight.detach().clone()
    module = Distillation(
        Network(), Network(2 * D), torch.randn(K, 2 * D), projector=projector, kd_weight=0.0
    )
    quiet_trainer(tmp_path).fit(module, loader(*data()))
    assert not torch.equal(projector[1].weight, before)


def test_another_name_of_the_teachers_classifier(seed: int) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(48, D), nn.Linear(D, K))
    Distillation(Network(), teacher, torch.randn(K, D), teacher_classifier="2")
    with pytest.raises(ValueError, match="teacher_classifier: Sequential has no module 'fc'"):
        Distillation(Network(), teacher, torch.randn(K, D))


@pytest.mark.long
def test_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    accuracy = float(capsys.readouterr().out.rsplit("'accuracy': ", 1)[1].rstrip("}\n"))
    assert accuracy > 0.6  # 0.1 by chance
