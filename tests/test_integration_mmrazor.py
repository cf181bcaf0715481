"""NDLoss in mmengine's registries, fed as mmrazor 1.0 feeds its losses.

mmrazor itself does not import with the torch that is here. Its distiller is stood in for by one
that reads the same config; its registry and mmdet's are children of mmengine's, as theirs are.
"""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine", reason="needs mmengine")

import mmengine
from mmengine.model import BaseModel
from torch import Tensor, nn

import ndfast
from ndfast.integrations.mmrazor import NDLoss

N, D, K = 7, 6, 4
EXAMPLES = Path(__file__).parents[1] / "examples/mmrazor"
SCOPES = ["mmrazor", "mmdet"]


class KLDivergence(nn.Module):
    """For mmrazor's, which the examples use beside the ND loss."""

    def __init__(self, tau: float, loss_weight: float) -> None:
        super().__init__()

    def forward(self, preds_S: Tensor, preds_T: Tensor) -> Tensor:
        return (preds_S - preds_T).square().mean()


def registry(scope: str) -> mmengine.Registry:
    models = mmengine.Registry("model", parent=mmengine.MODELS, scope=scope)
    models.register_module(module=KLDivergence)
    return models


@pytest.fixture
def class_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> Tensor:
    """Those that the examples read from the working folder; the last class is background."""
    means = torch.randn(K, D)
    monkeypatch.chdir(tmp_path)
    ndfast.save_class_means("class_means.safetensors", means)
    return means


@pytest.fixture(autouse=True)
def children() -> Any:
    """A child registry stays with its parent."""
    before = dict(mmengine.MODELS.children)
    yield
    mmengine.MODELS.children.clear()
    mmengine.MODELS.children.update(before)


class Distiller:
    """What mmrazor 1.0's ConfigurableDistiller does with its config, of what the examples use."""

    def __init__(self, config: dict[str, Any], models: mmengine.Registry) -> None:
        self.config = config
        self.losses = {k: models.build(v) for k, v in config["distill_losses"].items()}
        self.records: dict[tuple[bool, str], Any] = {}

    def watch(self, network: nn.Module, is_student: bool) -> None:
        recorders = self.config["student_recorders" if is_student else "teacher_recorders"]
        for name, recorder in recorders.items():
            inputs = {"ModuleInputs": True, "ModuleOutputs": False}[recorder["type"]]

            def record(
                module: nn.Module,
                args: Any,
                output: Any,
                key: tuple[bool, str] = (is_student, name),
                inputs: bool = inputs,
            ) -> None:
                self.records[key] = args if inputs else output

            dict(network.named_modules())[recorder["source"]].register_forward_hook(record)

    def compute(self) -> dict[str, Tensor]:
        computed = {}
        for name, mapping in self.config["loss_forward_mappings"].items():
            loss = self.losses[name]
            assert mapping.keys() <= inspect.signature(loss.forward).parameters.keys()
            given = {}
            for argument, place in mapping.items():
                data = self.records[place["from_student"], place["recorder"]]
                given[argument] = data[place["data_idx"]] if "data_idx" in place else data
            computed[name] = loss(**given)
        return computed


class CrossEntropyLoss(nn.Module):
    """Called as mmcls's and mmdet's heads call theirs."""

    def forward(
        self, cls_score: Tensor, label: Tensor, weight: Tensor | None = None, avg_factor: float = 1
    ) -> Tensor:
        return nn.functional.cross_entropy(cls_score, label)


class Classifier(nn.Module):
    """Modules by the names that mmcls 1.0's ImageClassifier gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, D)
        self.head = nn.Module()
        self.head.fc = nn.Linear(D, K)
        self.head.loss_module = CrossEntropyLoss()

    def forward(self, images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        logits = self.head.fc(self.backbone(images))
        return self.head.loss_module(logits, labels, avg_factor=len(labels))


class Detector(nn.Module):
    """Modules by the names that mmdet 3's FasterRCNN gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, D)
        self.roi_head = nn.Module()
        self.roi_head.bbox_head = head = nn.Module()
        head.fc_cls = nn.Linear(D, K)
        head.loss_cls = CrossEntropyLoss()

    def forward(self, images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        head = self.roi_head.bbox_head
        logits = head.fc_cls(self.backbone(images))
        return head.loss_cls(logits, labels, weights, avg_factor=len(labels))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("network", "example"),
    [
        (Classifier, "kdpp_resnet34_resnet18_8xb32_in1k.py"),
        (Detector, "kdpp_faster_rcnn_r101_r50_1x_coco.py"),
    ],
)
def test_the_examples_give_the_loss_of_the_features(
    network: Any, example: str, scope: str, class_means: Tensor
) -> None:
    config = runpy.run_path(str(EXAMPLES / example))
    assert config["custom_imports"]["imports"] == [NDLoss.__module__]
    distiller = Distiller(config["model"]["distiller"], registry(scope))
    student, teacher = network(), network()
    distiller.watch(student, True)
    distiller.watch(teacher, False)
    images, labels = torch.randn(N, 3), torch.randint(0, K, (N,))
    weights = torch.rand(N) if network is Detector else torch.ones(N)
    for each in (student, teacher):
        each(images, labels, weights)
    losses = distiller.compute()

    features, expected_features = student.backbone(images), teacher.backbone(images)
    expected = ndfast.nd_loss(
        features, expected_features.detach(), class_means, labels, sample_weight=weights
    )
    torch.testing.assert_close(losses["loss_nd"], expected)
    total, logged = BaseModel.parse_losses(None, losses)
    torch.testing.assert_close(logged["loss_nd"], expected)
    total.backward()
    assert student.backbone.weight.grad.abs().sum() > 0
    torch.testing.assert_close(logged["loss"], sum(losses.values()))


def test_no_gradient_goes_to_the_teacher(class_means: Tensor) -> None:
    loss = registry("mmrazor").build({"type": "NDLoss", "class_means": "class_means.safetensors"})
    student, teacher = (torch.randn(N, D, requires_grad=True) for _ in range(2))
    loss(100 * student, teacher, torch.zeros(N, dtype=torch.int64)).backward()
    loss(0.01 * student, teacher, torch.zeros(N, dtype=torch.int64)).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_weight_and_background(class_means: Tensor) -> None:
    config = {
        "type": "NDLoss",
        "class_means": "class_means.safetensors",
        "loss_weight": 2.5,
        "ignore_index": K - 1,
        "backend": "reference",
    }
    loss = registry("mmdet").build(config)
    student, teacher = torch.randn(N, D), torch.randn(N, D)
    labels = torch.arange(N) % K
    front = labels < K - 1
    expected = ndfast.nd_loss(student[front], teacher[front], class_means, labels[front])
    torch.testing.assert_close(loss(student, teacher, labels), 2.5 * expected)
    assert loss.nd.backend == "reference"


def test_the_class_means_move_and_are_saved_with_the_model(class_means: Tensor) -> None:
    loss = registry("mmrazor").build({"type": "NDLoss", "class_means": "class_means.safetensors"})
    torch.testing.assert_close(loss.state_dict()["nd.class_means"], class_means)
    assert loss.double().nd.class_means.dtype == torch.float64


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        NDLoss(str(tmp_path / "nowhere.json"))
