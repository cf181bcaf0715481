"""KD++ and DKD++ as distillers of mdistiller, over a stand-in of its interface."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mdistiller_stand_in as stand_in
import pytest
import torch
import torch.nn.functional as F
import yaml
from held_features import seen_by

import ndfast
from ndfast.losses import dkd_loss, kd_loss

N, D, K = 6, 8, 5
EXAMPLE = Path(__file__).parents[1] / "examples/mdistiller/kdpp_res56_res20.yaml"


@pytest.fixture
def mdistiller() -> Iterator[dict[str, Any]]:
    """What importing the adapter has registered."""
    with pytest.MonkeyPatch.context() as patch:
        found = stand_in.install(patch)
        patch.delitem(sys.modules, "ndfast.integrations.mdistiller", raising=False)
        importlib.import_module("ndfast.integrations.mdistiller")
        yield found
        sys.modules.pop("ndfast.integrations.mdistiller")


@pytest.fixture
def class_means(tmp_path: Path, seed: int) -> torch.Tensor:
    means = torch.randn(K, D)
    ndfast.save_class_means(tmp_path / "means.safetensors", means)
    return means


def build(mdistiller: dict[str, Any], kind: str, folder: Path, student_dim: int = D) -> Any:
    nd = mdistiller["CFG"].ND
    nd.CLASS_MEANS, nd.WEIGHT = str(folder / "means.safetensors"), 3.0
    nd.STUDENT_DIM = 0 if student_dim == D else student_dim
    student, teacher = stand_in.Network(student_dim, K), stand_in.Network(D, K)
    return mdistiller["distiller_dict"][kind](student, teacher, mdistiller["CFG"])


@pytest.mark.parametrize("epoch", [1, 10, 40])
@pytest.mark.parametrize("kind", ["KD++", "DKD++"])
def test_the_losses(
    kind: str, epoch: int, mdistiller: Any, class_means: torch.Tensor, tmp_path: Path
) -> None:
    distiller = build(mdistiller, kind, tmp_path).train()
    image, target = torch.randn(N, 3, 2, 2), torch.randint(0, K, (N,))
    logits, losses = distiller(image=image, target=target, epoch=epoch)
    ours, features = distiller.student(image)
    theirs, expected = distiller.teacher(image)
    assert torch.equal(logits, ours)
    cross_entropy = F.cross_entropy(ours, target)
    if kind == "KD++":  # mdistiller's default factors
        ce, kd = 0.1 * cross_entropy, 0.9 * kd_loss(ours, theirs, 4.0)
    else:
        ce, kd = cross_entropy, min(epoch / 20, 1) * dkd_loss(ours, theirs, target, 1.0, 8.0, 4.0)
    nd = 3 * ndfast.nd_loss(
        features["pooled_feat"], expected["pooled_feat"], class_means, target, backend="reference"
    )
    torch.testing.assert_close(losses, {"loss_ce": ce, "loss_kd": kd, "loss_nd": nd})
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in distiller.get_learnable_parameters())
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert distiller.get_extra_parameters() == 0
    assert not distiller.teacher.training


def test_nothing_of_a_batch_is_held(
    mdistiller: Any, class_means: torch.Tensor, tmp_path: Path
) -> None:
    distiller = build(mdistiller, "KD++", tmp_path).train()
    image, target = torch.randn(N, 3, 2, 2), torch.randint(0, K, (N,))
    with seen_by(distiller.student.fc, distiller.teacher.fc) as seen:
        sum(distiller(image=image, target=target, epoch=1)[1].values()).backward()
        distiller.student(image)
        assert (len(seen), seen.held()) == (3, 0)
    copy.deepcopy(distiller)


def test_a_projector_where_the_widths_differ(
    mdistiller: Any, class_means: torch.Tensor, tmp_path: Path
) -> None:
    distiller = build(mdistiller, "KD++", tmp_path, student_dim=6).train()
    _, losses = distiller(image=torch.randn(N, 3, 2, 2), target=torch.randint(0, K, (N,)), epoch=1)
    losses["loss_nd"].backward()
    assert distiller.get_extra_parameters() == 2 * 6 + 6 * D + D
    learnable = {id(parameter) for parameter in distiller.get_learnable_parameters()}
    assert {id(parameter) for parameter in distiller.projector.parameters()} < learnable
    assert distiller.projector[2].weight.grad is not None
    assert distiller.student.body.weight.grad is not None


def test_class_means_are_asked_for(mdistiller: Any) -> None:
    with pytest.raises(ValueError, match=r"ND.CLASS_MEANS: got none; expected the file"):
        mdistiller["distiller_dict"]["KD++"](None, None, mdistiller["CFG"])


def test_the_example_names_what_there_is(mdistiller: Any) -> None:
    example = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert example["DISTILLER"]["TYPE"] in mdistiller["distiller_dict"]
    assert example["ND"].keys() == mdistiller["CFG"].ND.keys()
    assert example["KD"].keys() == mdistiller["CFG"].KD.keys()
