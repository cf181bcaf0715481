"""NDLoss in torchdistill's DistillationBox, by its YAML."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision_ops", reason="needs torchvision")  # before torchdistill
pytest.importorskip("torchdistill", reason="needs torchdistill")

from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchdistill.common import yaml_util
from torchdistill.common.main_util import import_dependencies
from torchdistill.core.distillation import get_distillation_box
from torchdistill.losses.registry import get_mid_level_loss

import ndfast

EXAMPLE = Path(__file__).parents[1] / "examples/torchdistill"
N, D, K = 12, 8, 5


class Network(nn.Module):
    """Pooled features [N, D, 1, 1] go into its classifier's Flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.Conv2d(3, D, 4))
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(D, K))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.pool(images))


@pytest.fixture
def config(tmp_path: Path, seed: int) -> dict[str, Any]:
    """The example's, for other data; importing its dependencies registers the loss."""
    config = yaml_util.load_yaml_file(str(EXAMPLE / "kdpp.yaml"))
    import_dependencies(config["dependencies"])
    train = config["train"]
    train["train_data_loader"] |= {"dataset_id": "random", "kwargs": {"batch_size": 4}}
    nd = train["criterion"]["kwargs"]["sub_terms"]["nd"]["criterion"]["kwargs"]
    nd["class_means"] = str(tmp_path / "means.safetensors")
    ndfast.save_class_means(nd["class_means"], torch.randn(K, D))
    return train


def test_a_training_of_the_nd_loss_alone(config: dict[str, Any]) -> None:
    terms = config["criterion"]["kwargs"]["sub_terms"]
    del terms["kd"]
    images, labels = torch.randn(N, 3, 4, 4), torch.randint(0, K, (N,))
    teacher, student = Network(), Network()
    reference = copy.deepcopy(student)
    box = get_distillation_box(
        teacher, student, {"random": TensorDataset(images, labels)}, config, torch.device("cpu"),
        None, distributed=False, lr_factor=1,
    )  # fmt: skip
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    class_means = ndfast.load_class_means(terms["nd"]["criterion"]["kwargs"]["class_means"])
    for batch, targets, supp in box.train_data_loader:
        loss = box.forward_process(batch, targets, supp)
        box.post_forward_process(loss=loss)
        expected = ndfast.nd_loss(
            reference.pool(batch), teacher.pool(batch).detach(), class_means, targets,
            weight=2.0, backend="reference",
        )  # fmt: skip
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_it_stands_beside_kd(config: dict[str, Any]) -> None:
    data = TensorDataset(torch.randn(N, 3, 4, 4), torch.randint(0, K, (N,)))
    box = get_distillation_box(
        Network(), Network(), {"random": data}, config, torch.device("cpu"), None,
        distributed=False, lr_factor=1,
    )  # fmt: skip
    batch, targets, supp = next(iter(box.train_data_loader))
    total = box.forward_process(batch, targets, supp)
    io = {"student": {}, "teacher": {}}
    for role, model in (("student", box.student_model), ("teacher", box.teacher_model)):
        features = model.pool(batch)
        io[role]["fc"] = {"input": features, "output": model.fc(features)}
    terms = box.criterion.term_dict
    parts = {
        name: weight * loss(io["student"], io["teacher"], targets)
        for name, (loss, weight) in terms.items()
    }
    assert parts.keys() == {"kd", "nd"}
    torch.testing.assert_close(total, sum(parts.values()))


def test_class_means_follow_the_features(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    criterion = config["criterion"]["kwargs"]["sub_terms"]["nd"]["criterion"]
    loss = get_mid_level_loss(criterion)
    moved = []
    monkeypatch.setattr(ndfast.NDLoss, "to", lambda self, device: moved.append(device))
    monkeypatch.setattr(ndfast.NDLoss, "forward", lambda self, *rows: torch.zeros(()))
    for device, expected in (("cpu", []), ("meta", [torch.device("meta")])):
        io = {"fc": {"input": torch.empty(4, D, device=device)}}
        loss(io, io, torch.zeros(4, dtype=torch.int64))
        assert moved == expected


def test_a_hook_that_is_missing_is_named(config: dict[str, Any]) -> None:
    loss = get_mid_level_loss(config["criterion"]["kwargs"]["sub_terms"]["nd"]["criterion"])
    io = {"fc": {"output": torch.randn(4, D)}}
    with pytest.raises(KeyError, match="student_module_path: no hook caught the input of 'fc'"):
        loss(io, io, torch.zeros(4, dtype=torch.int64))


@pytest.mark.long
def test_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE / "train.py"), run_name="__main__")
    accuracy = float(capsys.readouterr().out.split()[-1])
    assert accuracy > 0.7
