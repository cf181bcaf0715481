"""Tensors made in torch.inference_mode(): what backward does not read may be, else it is named."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import pytest
import torch
from both_losses import attached, definition
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import ndfast

N, D, K = 6, 8, 5
INFERENCE = r"got a tensor made in torch.inference_mode\(\)"


@pytest.fixture
def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.randn(N, D), torch.randn(N, D), torch.randn(K, D), torch.randint(0, K, (N,))


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (ndfast.nd_loss, "student"),  # one that needs no gradient is not attached
        *product(
            (ndfast.nd_loss, attached),
            ("class_means", "target", "target.target_b", "target.lam"),
        ),
    ],
)
def test_what_backward_reads_cannot_come_from_inference_mode(
    loss: Callable[..., Tensor], name: str, inputs: tuple
) -> None:
    student, teacher, class_means, labels = inputs
    values = {"student": student, "class_means": class_means, "target": labels}
    values |= {"target.target_b": labels.clone(), "target.lam": torch.rand(N)}
    if name != "student":
        student.requires_grad_()
    class_means.requires_grad_(name == "student")
    with torch.inference_mode():
        values[name] = values[name].clone()
    target = values["target"]
    if name.startswith("target."):
        target = ndfast.Mix(target, values["target.target_b"], values["target.lam"])
    with pytest.raises(RuntimeError, match=f"^{name}: {INFERENCE}"):
        loss(values["student"], teacher, values["class_means"], target)
    # Where nothing is differentiated, anything may.
    with torch.no_grad() if name != "student" else nullcontext():
        assert loss(values["student"], teacher, values["class_means"].detach(), target).isfinite()


@pytest.mark.parametrize("loss", [ndfast.nd_loss, attached])
@pytest.mark.parametrize("way", ["eager", "mode", "subclass", "torch.func"])
def test_it_is_named_in_every_way(way: str, loss: Callable[..., Tensor], inputs: tuple) -> None:
    student, teacher, class_means, labels = inputs
    with torch.inference_mode():
        class_means = class_means.clone()

    def call(student: Tensor) -> Tensor:
        return loss(student, teacher, class_means, labels)

    leaf = student.requires_grad_()
    if way == "subclass":
        leaf = leaf.as_subclass(type("Watched", (Tensor,), {}))
    if way == "torch.func":
        call = torch.func.grad(call)
    mode = FlopCounterMode(display=False) if way == "mode" else nullcontext()
    with mode, pytest.raises(RuntimeError, match=f"^class_means: {INFERENCE}"):
        call(leaf)


def test_class_probabilities_from_inference_mode(inputs: tuple) -> None:
    student, teacher, class_means, _ = inputs
    with torch.inference_mode():
        target = torch.rand(N, K).softmax(dim=1)
    ndfast.nd_loss(student.requires_grad_(), teacher, class_means, target).backward()
    centres = target @ class_means
    expected = definition(student.detach(), teacher, centres, torch.arange(N), torch.ones(N))
    torch.testing.assert_close(student.grad, expected)
    learnable = class_means.requires_grad_()
    with pytest.raises(RuntimeError, match=f"^target: {INFERENCE}"):
        ndfast.nd_loss(student, teacher, learnable, target)
    with torch.no_grad():
        assert ndfast.nd_loss(student, teacher, learnable, target).isfinite()


def test_direct_norm_loss_names_it_as_its_authors_do(inputs: tuple) -> None:
    student, teacher, class_means, labels = inputs
    with torch.inference_mode():
        class_means = class_means.clone()
    with pytest.raises(RuntimeError, match=f"^T_EMB: {INFERENCE}"):
        ndfast.DirectNormLoss()(student.requires_grad_(), teacher, class_means, labels)


@pytest.mark.parametrize("suffix", ["json", "npz", "safetensors"])
def test_class_means_may_be_loaded_in_inference_mode(
    suffix: str, inputs: tuple, tmp_path: Path
) -> None:
    student, teacher, class_means, labels = inputs
    path = tmp_path / f"means.{suffix}"
    with torch.inference_mode():
        ndfast.save_class_means(path, class_means)
        loaded = ndfast.load_class_means(path)
    ndfast.nd_loss(student.requires_grad_(), teacher, loaded, labels).backward()
    expected = definition(student.detach(), teacher, class_means, labels, torch.ones(N))
    torch.testing.assert_close(student.grad, expected)


@pytest.mark.parametrize("learnable", [False, True])
def test_a_module_may_be_made_in_inference_mode(learnable: bool, inputs: tuple) -> None:
    student, teacher, class_means, labels = inputs
    with torch.inference_mode():
        module = ndfast.NDLoss(class_means.clone(), learnable=learnable)
    module(student.requires_grad_(), teacher, labels).backward()
    expected = definition(student.detach(), teacher, class_means, labels, torch.ones(N))
    torch.testing.assert_close(student.grad, expected)
    assert (module.class_means.grad is not None) == learnable
