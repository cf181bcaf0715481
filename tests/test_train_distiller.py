"""The distiller: the losses of a method, and what each of them teaches."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("accelerate", reason="needs the extra [train]")

from small_networks import Linear, small_teacher
from small_runs import small_config

from ndfast.losses import kd_loss
from ndfast.train.config.methods import METHODS
from ndfast.train.distill.distiller import Distiller
from ndfast.train.distill.teacher import Teacher
from ndfast.train.errors import ConfigError
from ndfast.train.models import build_model


def test_methods_come_in_pairs() -> None:
    assert METHODS["ce"] == (None, False)
    names = [name for name in METHODS if name.endswith("++")]
    assert names == ["kd++", "dkd++", "dist++", "reviewkd++"]
    for name in names:
        assert METHODS[name] == (name[:-2], True)
        assert METHODS[name[:-2]] == (name[:-2], False)


@pytest.mark.parametrize("method", ["ce", "kd", "kd++"])
def test_the_losses_of_a_method(method: str, tmp_path: Path) -> None:
    config = small_config(tmp_path, method=method, nd_weight=3.0)
    teacher = small_teacher(dim=16)
    network = build_model("convnet4", 10, (1, 8, 8)).eval()
    distiller = Distiller(network, config, None if method == "ce" else teacher).eval()
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6)
    ours, theirs = network(images), teacher(images)
    losses = distiller(images, labels, theirs)
    expected = {"ce": F.cross_entropy(ours.logits, labels)}
    expected["accuracy"] = (ours.logits.argmax(dim=1) == labels).float().mean()
    if method != "ce":
        expected["distillation"] = kd_loss(ours.logits, theirs.logits, 4.0)
    if method == "kd++":
        centres = F.normalize(teacher.class_means[labels])
        largest = torch.maximum(ours.features.norm(dim=1), theirs.features.norm(dim=1))
        expected["nd"] = 3 * (1 - (ours.features * centres).sum(dim=1) / largest).mean()
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=name)


def test_reviewkd_takes_a_students_stages_after_their_activation(seed: int, tmp_path: Path) -> None:
    config = small_config(tmp_path, method="reviewkd")
    network, frozen = (build_model("convnet4", 10, (1, 8, 8)).eval() for _ in range(2))
    teacher = Teacher(frozen.requires_grad_(False), None, {})
    distiller = Distiller(network, config, teacher).eval()
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6)
    ours, theirs = network(images), teacher(images)
    found = distiller(images, labels, theirs)["distillation"]
    distiller.review.before_fusion = None
    active = (*map(F.silu, ours.stages), ours.features)
    of_teacher = (*theirs.stages, theirs.features)
    torch.testing.assert_close(found, distiller.review(active, of_teacher))
    inactive = (*ours.stages, ours.features)
    assert not torch.isclose(found, distiller.review(inactive, of_teacher))


def test_reviewkd_wants_equal_numbers_of_stages(tmp_path: Path) -> None:
    config = small_config(tmp_path, method="reviewkd")
    student = build_model("resnet8x4", 10, (3, 32, 32))
    teacher = Teacher(build_model("resnet50", 10, (3, 32, 32)), None, {})
    with pytest.raises(ConfigError, match="got a network of 3 stages against the teacher's 4;"):
        Distiller(student, config, teacher)


@pytest.mark.parametrize(("method", "reaches"), [("kd++", True), ("kd", False)])
def test_only_the_nd_loss_of_a_method_teaches_through_the_projector(
    method: str, reaches: bool, tmp_path: Path
) -> None:
    config = small_config(tmp_path, method=method, probe=True)
    distiller = Distiller(Linear(64, 16, 10), config, small_teacher(dim=24))
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6)
    distiller(images, labels, small_teacher(dim=24)(images))["nd"].backward()
    assert (distiller.network.layer.weight.grad is not None) == reaches
    assert distiller.projector[2].weight.grad is not None
    assert distiller(images)["features"].shape == (6, 24)


@pytest.mark.parametrize("how", ["zero_bias", "normal"])
@pytest.mark.parametrize("method", ["ce", "kd++"])
def test_linear_layers_begin_as_the_authors_have_them(
    method: str, how: str, seed: int, tmp_path: Path
) -> None:
    teacher = small_teacher(dim=256) if method == "kd++" else None
    found = []
    for linear_init in (None, how):
        torch.manual_seed(seed)
        network = build_model("convnet4", 10, (1, 8, 8))
        config = small_config(tmp_path, method=method, linear_init=linear_init)
        found.append(Distiller(network, config, teacher).state_dict())
    default, changed = found
    weights, biases = ["network.classifier.weight"], ["network.classifier.bias"]
    if method == "kd++":
        weights, biases = [*weights, "projector.2.weight"], [*biases, "projector.2.bias"]
    for name in set(default) - set(weights) - set(biases):
        assert torch.equal(changed[name], default[name]), name
    if how == "zero_bias":
        assert not any(changed[name].any() for name in biases)
        assert torch.equal(changed[weights[0]], default[weights[0]])
        assert all(changed[name].std() > 0.1 for name in weights)
    else:
        for name in (*weights, *biases):
            spread = changed[name].square().mean().sqrt()
            # Within six standard errors of it: of 10 biases at least.
            assert abs(spread / 0.01 - 1) < 6 / math.sqrt(2 * changed[name].numel()), name


@pytest.mark.parametrize(
    ("dim", "method", "probe", "projector", "nd"),
    [
        (16, "kd++", False, False, True),
        (24, "kd++", False, True, True),
        (16, "kd", True, False, False),
        (24, "kd", True, True, True),
        (24, "kd", False, False, False),
    ],
)
def test_a_projector_where_the_widths_differ(
    dim: int, method: str, probe: bool, projector: bool, nd: bool, tmp_path: Path
) -> None:
    config = small_config(tmp_path, method=method, probe=probe)
    distiller = Distiller(Linear(64, 16, 10), config, small_teacher(dim))
    assert (distiller.projector is not None, distiller.nd is not None) == (projector, nd)


def test_learnable_class_means_are_trained(tmp_path: Path) -> None:
    config = small_config(tmp_path, learnable_class_means=True)
    distiller = Distiller(Linear(64, 16, 10), config, small_teacher(dim=16))
    images = torch.randn(3, 1, 8, 8)
    distiller(images, torch.tensor([1, 1, 4]), small_teacher(16)(images))["nd"].backward()
    touched = distiller.nd.class_means.grad.abs().sum(dim=1) > 0
    assert touched.nonzero().flatten().tolist() == [1, 4]
