"""The ND loss on box features: its gradient, batches without foreground, class means, a run."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor

import ndfast
from ndfast.train.data.batches import Batch
from ndfast.train.detection import boxes as box_math
from ndfast.train.detection.class_means import take_class_means
from ndfast.train.detection.coco import read_coco
from ndfast.train.detection.config import DetectionConfig
from ndfast.train.detection.detector import BoxOutput, Rows, Target
from ndfast.train.detection.distiller import DetectionDistiller
from ndfast.train.detection.loop import train
from ndfast.train.detection.run import build_detector, build_table, run
from ndfast.train.detection.shapes import write_shapes
from ndfast.train.detection.small_detector import SmallDetector
from ndfast.train.errors import ConfigError
from ndfast.train.models.weights import load_weights
from ndfast.train.position import Silent

K, D = 5, 16


def small_config(**fields: Any) -> DetectionConfig:
    return DetectionConfig(
        **{"images": 18, "dim": D, "rows": 24, "epochs": 1, "teacher": "tiny", **fields}
    )


def detector(**fields: Any) -> SmallDetector:
    found = build_detector(small_config(**fields), "tiny", K)
    assert isinstance(found, SmallDetector)
    return found


def teacher() -> SmallDetector:
    return detector().eval().requires_grad_(False)


def batch(*objects: int) -> tuple[list[Tensor], list[Target]]:
    """Images of noise with so many objects in each."""
    targets = []
    for count in objects:
        corner = torch.rand(count, 2) * 40
        boxes = torch.cat((corner, corner + 8 + 12 * torch.rand(count, 2)), dim=1)
        targets.append(Target(boxes, torch.randint(K, (count,))))
    return [torch.rand(3, 64, 64) for _ in objects], targets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of drawn shapes."""
    write_shapes(tmp_path / "shapes", 16, 4)
    return tmp_path / "shapes"


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("kinds", ["both", "no background", "no foreground"])
def test_the_gradient_is_the_definitions(
    kinds: str, background: bool, backend: str | None, seed: int
) -> None:
    config = small_config(nd_background=background, nd_weight=1.5, backend=backend)
    means = torch.randn(K + 1, D)
    distiller = DetectionDistiller(detector(), "kd++", config, means)
    for count in (37, 5):  # a different number of rows in every step
        labels = torch.randint(K, (count,))
        if kinds != "no background":
            labels[:: 1 if kinds == "no foreground" else 2] = K
        s, t = torch.randn(count, D).requires_grad_(), 0.8 * torch.randn(count, D)
        logits = torch.randn(count, K + 1)
        rows = Rows([torch.zeros(count, 4)], labels, torch.zeros(count, 4))
        losses = distiller.distil(BoxOutput(s, logits, logits), BoxOutput(t, logits, logits), rows)
        losses["nd"].backward()
        # DESIGN's formula, in float64.
        c = torch.nn.functional.normalize(means.double())[labels]
        student, norm_s, norm_t = s.detach().double(), s.norm(dim=1).double(), t.norm(dim=1)
        m, p = torch.maximum(norm_s, norm_t.double())[:, None], (student * c).sum(1, keepdim=True)
        longer = (norm_s >= norm_t)[:, None]
        expected = -c / m + longer * p / (m**2 * norm_s[:, None]) * student
        counted = (labels < K) | background
        denominator = max(int(counted.sum()), 1)
        expected = 1.5 * expected * counted[:, None] / denominator
        assert s.grad is not None
        torch.testing.assert_close(s.grad.double(), expected.detach(), rtol=1e-4, atol=1e-6)
        loss = (1.5 * (1 - p / m).flatten() * counted).sum() / denominator
        assert losses["nd"].item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
        assert losses["kd"].item() == pytest.approx(0, abs=1e-6)  # the same logits


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}


@pytest.mark.parametrize("background", [True, False])
def test_a_batch_without_foreground_trains_on(background: bool, seed: int) -> None:
    config = small_config(nd_background=background)
    distiller = DetectionDistiller(detector(), "kd++", config, torch.rand(K + 1, D)).train()
    student, optimizer = distiller.student, torch.optim.SGD(distiller.parameters(), 0.01)
    changed = []
    for objects in ((0, 0, 0), (2, 0, 1)):
        before = {name: value.clone() for name, value in student.named_parameters()}
        losses = distiller(*batch(*objects), teacher())
        assert set(losses) == {
            "objectness", "proposals", "classification", "regression", "kd", "nd",
        }  # fmt: skip
        assert all(loss.isfinite() for loss in losses.values())
        if objects == (0, 0, 0):
            assert losses["regression"].item() == losses["proposals"].item() == 0
            nd = gradients(student, losses["nd"])
            assert any(grad.any() for grad in nd.values()) == background
            assert (losses["nd"].item() != 0) == background
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        optimizer.step()
        assert all(value.isfinite().all() for value in student.parameters())
        changed.append(
            {name for name, value in student.named_parameters() if (value != before[name]).any()}
        )
    everything = {name for name, _ in student.named_parameters()}
    boxes = {"offsets.weight", "offsets.bias"}
    proposals = {f"proposals.{name}" for name in boxes}
    assert changed == [everything - boxes - proposals, everything]


def test_a_batch_without_any_row_trains_on(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    distiller = DetectionDistiller(detector(), "kd++", small_config(), torch.rand(K + 1, D))
    none = Rows([torch.zeros(0, 4)] * 2, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    monkeypatch.setattr(distiller.student, "sample", lambda maps, targets: (none, {}))
    losses = distiller(*batch(1, 0), teacher())
    assert {name: loss.item() for name, loss in losses.items()} == {
        "classification": 0, "regression": 0, "nd": 0,
    }  # fmt: skip
    for grad in gradients(distiller, torch.stack([*losses.values()]).sum()).values():
        assert not grad.any()


def test_teacher_and_student_see_the_same_proposals(seed: int) -> None:
    config = small_config()
    distiller = DetectionDistiller(detector(), "kd++", config, torch.rand(K + 1, D)).train()
    asked = teacher()
    seen: dict[str, list[Any]] = {"student": [], "teacher": []}
    for name, model in (("student", distiller.student), ("teacher", asked)):
        read = model.read

        def recorded(maps: Any, boxes: Any, name: str = name, read: Any = read) -> BoxOutput:
            seen[name].append((maps.sizes, boxes))
            return read(maps, boxes)

        model.read = recorded  # type: ignore[method-assign]
    counts = set()
    for objects in itertools.product(range(3), range(3)):
        images, targets = batch(*objects)
        losses = distiller(images, targets, asked)
        assert not losses["kd"].isnan()
        (sizes, student_boxes), (teacher_sizes, teacher_boxes) = (
            seen["student"][-1],
            seen["teacher"][-1],
        )
        assert sizes == teacher_sizes
        assert all(map(torch.equal, student_boxes, teacher_boxes))
        # They are the student's: the teacher would have proposed others.
        rows, _ = asked.sample(asked.encode(images), targets)
        assert rows.labels.shape != (0,)
        assert not all(map(torch.equal, rows.boxes, student_boxes))
        counts.add(sum(map(len, student_boxes)))
    assert all(not parameter.requires_grad for parameter in asked.parameters())


def all_rows(model: SmallDetector, dataset: Any) -> Iterator[tuple[Tensor, Tensor]]:
    for row in range(len(dataset)):
        images, (target,) = dataset.__getitems__(Batch([row], None))
        maps = model.encode(images)
        proposals, _ = model.proposals(maps.features, maps.sizes, None)
        boxes = torch.cat((proposals[0], target.boxes))
        nearest, overlap = box_math.match(boxes, target.boxes)
        labels = torch.full_like(nearest, K)
        near = overlap >= 0.5
        labels[near] = target.labels[nearest[near]]
        yield model.read(maps, [boxes]).features, labels


def test_class_means_are_those_of_the_teachers_rows(folder: Path, seed: int) -> None:
    data = read_coco(folder)
    model = detector(rows=1000).eval()  # all proposals are rows
    with torch.no_grad():
        features, labels = map(torch.cat, zip(*all_rows(model, data.train), strict=True))
    expected = torch.stack([features[labels == k].double().mean(dim=0) for k in range(K + 1)])
    assert (labels == K).sum() > len(labels) / 2  # background is the last
    for batch_size in (1, 5):
        means, counts = take_class_means(Accelerator(cpu=True), model, data.train, batch_size)
        assert counts.tolist() == labels.bincount(minlength=K + 1).tolist()
        torch.testing.assert_close(means.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_loss_of_nan_ends_the_training(folder: Path) -> None:
    config = small_config(batch_size=4)
    distiller = DetectionDistiller(detector(), "kd++", config, torch.full((K + 1, D), torch.nan))
    before = [value.clone() for value in distiller.parameters()]
    data = read_coco(folder).train
    with pytest.raises(FloatingPointError, match=r"NaN or infinite in epoch 1 .*nd nan\); a lower"):
        train(Accelerator(cpu=True), distiller, teacher(), data, config, Silent())
    assert all(map(torch.equal, distiller.parameters(), before))
    with pytest.raises(ConfigError, match="batch_size: got 17; it takes at most 16"):
        train(Accelerator(cpu=True), distiller, None, data, small_config(batch_size=17), Silent())


def quiet(out: Path, **fields: Any) -> dict[str, Any]:
    return run(small_config(out=str(out), **fields), Console(quiet=True))


def test_a_run_and_what_goes_on_from_its_files(tmp_path: Path) -> None:
    first = quiet(tmp_path / "first")
    out = tmp_path / "first"
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(first))
    assert set(first["students"]) == {"ce", "kd", "kd++"}
    assert (first["data"]["train"], first["data"]["test"]) == (18, 6)
    metrics = {"map", "map50", "norm", "cosine"}
    assert set(first["teacher"]) == metrics
    for method, found in first["students"].items():
        assert set(found) == {*metrics, "losses"}
        assert ("nd" in found["losses"]) == (method == "kd++")
        assert ("kd" in found["losses"]) == (method != "ce")
        load_weights(detector(), out / f"{method}.safetensors")
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(build_table(first))
    text = console.export_text()
    assert all(name in text for name in ("teacher", "kd++", f"{first['teacher']['cosine']:.3f}"))
    means = ndfast.load_class_means(out / "class_means.safetensors")
    assert means.shape == (K + 1, D)
    given = {
        "data_dir": str(out / "shapes"),
        "teacher_weights": str(out / "teacher.safetensors"),
        "class_means": str(out / "class_means.safetensors"),
        "methods": ("kd++",),
    }
    again = quiet(tmp_path / "again", **given)
    assert again["teacher"] == first["teacher"]
    assert again["students"]["kd++"] == first["students"]["kd++"]
    reference = quiet(tmp_path / "reference", **given, backend="reference")["students"]["kd++"]
    assert reference["losses"] == pytest.approx(again["students"]["kd++"]["losses"], rel=1e-4)

    def refused(**fields: Any) -> str:
        with pytest.raises(ConfigError) as raised:
            quiet(tmp_path / "refused", **{**given, **fields})
        assert "\n" not in str(raised.value)
        return str(raised.value)

    with pytest.raises(ConfigError, match="first holds a run; it takes --overwrite"):
        quiet(out)
    file = given["class_means"]
    assert f"class_means: {file} is of another teacher (tiny on coco" in refused(
        teacher_weights=str(out / "kd.safetensors")
    )
    write_shapes(tmp_path / "other", 18, 4, seed=1)
    assert f"class_means: {file} is of another data set" in refused(
        data_dir=str(tmp_path / "other")
    )
    ndfast.save_class_means(tmp_path / "81.npz", torch.rand(81, D))
    assert "is [81, 16]; teacher and data take [6, 16]" in refused(
        class_means=str(tmp_path / "81.npz")
    )
    ndfast.save_class_means(tmp_path / "wide.npz", torch.rand(K + 1, 1024))
    assert "is [6, 1024]; teacher and data take [6, 16]" in refused(
        class_means=str(tmp_path / "wide.npz")
    )


def test_the_learning_rate_follows_its_schedule(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def recorded(self: Any, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    config = small_config(batch_size=8, epochs=3, lr=0.1, optimizer="sgd")
    distiller = DetectionDistiller(detector(), "ce", config)
    train(Accelerator(cpu=True), distiller, None, read_coco(folder).train, config, Silent())
    # Two steps of growth, and half a cosine over four.
    cosine = [0.05 * (1 + math.cos(math.pi * part / 4)) for part in range(4)]
    assert rates == pytest.approx([0.05, 0.1, *cosine])
    assert not distiller.training


def test_the_seed_decides_everything(folder: Path) -> None:
    def trained(seed: int) -> Tensor:
        set_seed(seed)
        config = small_config(batch_size=4, seed=seed)
        distiller = DetectionDistiller(detector(), "ce", config)
        train(Accelerator(cpu=True), distiller, None, read_coco(folder).train, config, Silent())
        return torch.cat([value.flatten() for value in distiller.parameters()])

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "large"}, "model: got 'large'; it takes tiny, small, or torchvision:NAME"),
        ({"methods": ("kd", "dkd")}, "methods: got 'dkd'; it takes ce, kd, kd++"),
        ({"methods": ()}, "methods: got none; it takes ce, kd, kd++"),
        ({"epochs": 0}, "epochs: got 0; it takes 1 or more"),
        ({"lr": float("nan")}, "lr: got nan; it takes more than 0"),
        ({"momentum": float("nan")}, "momentum: got nan; it takes 0 or more"),
        ({"anchor_sizes": (8, 0)}, "anchor_sizes: got [8, 0]; it takes one or more, of 1 or more"),
    ],
)
def test_options_that_are_not_taken(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        DetectionConfig(**fields)
    assert str(raised.value).startswith(message)
