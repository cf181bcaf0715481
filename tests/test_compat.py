"""DirectNormLoss against the loop over samples that its formula says."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ndfast import compat
from ndfast.compat import DirectNormLoss

KDPP = Path(__file__).parents[2] / "shared" / "data" / "kdpp"
T_EMB = {"2": [0.0, 3.0], "0": [4.0, 0.0], "1": [3.0, 4.0]}  # directions (0, 1), (1, 0), (.6, .8)


def loss_of_each_sample(s_emb: Tensor, t_emb: Tensor, T_EMB: dict, labels: Tensor) -> Tensor:
    """The mean over samples of 1 - <s, e> / max(‖s‖, ‖t‖), one sample at a time."""
    losses = []
    for s, t, label in zip(s_emb, t_emb, labels.tolist(), strict=True):
        centre = torch.tensor(T_EMB[str(label)]).to(s)  # the file's numbers as float32
        norm_s, norm_t = s.square().sum().sqrt(), t.square().sum().sqrt()
        direction = centre / centre.square().sum().sqrt()
        losses.append(1 - (s * direction).sum() / (norm_s if norm_s >= norm_t else norm_t))
    return torch.stack(losses).mean()


def draw(B: int, D: int, classes: list[int]) -> tuple[Tensor, Tensor, Tensor, int]:
    """Rows of both kinds, with the student's norm the larger one and with the teacher's."""
    generator = torch.Generator()
    seed = generator.seed()
    s_emb, t_emb = torch.randn(2, B, D, generator=generator).abs()
    scale = torch.cat([torch.full((B // 2, 1), 0.25), torch.full((B - B // 2, 1), 4.0)])
    labels = torch.tensor(classes)[torch.randint(len(classes), (B,), generator=generator)]
    return s_emb * scale, t_emb, labels, seed


def check_against_loop(loss_fn: DirectNormLoss, T_EMB: dict, D: int, factor: float) -> None:
    s_emb, t_emb, labels, seed = draw(96, D, list(map(int, T_EMB)))
    student_is_larger = s_emb.norm(dim=1) > t_emb.norm(dim=1)
    assert 0 < student_is_larger.sum() < 96, f"seed {seed}"
    fused = [s_emb.requires_grad_(), t_emb.requires_grad_()]
    looped = [x.detach().double().requires_grad_() for x in fused]

    loss = loss_fn(*fused, T_EMB, labels)
    expected = factor * loss_of_each_sample(*looped, T_EMB, labels)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6), f"seed {seed}"

    loss.backward()
    expected.backward()
    for got, want in zip(fused, looped, strict=True):
        assert got.grad is not None
        assert want.grad is not None
        error = (got.grad - want.grad).norm(dim=1)
        assert (error <= 1e-5 * want.grad.norm(dim=1)).all(), f"seed {seed}"


@pytest.mark.parametrize(("name", "D"), [("cifar100_resnet56.json", 64), ("coco_r101.json", 1024)])
def test_the_authors_files_against_the_loop(name: str, D: int) -> None:
    if not (KDPP / name).exists():
        pytest.skip(f"no {name} beside the checkout")
    T_EMB = json.loads((KDPP / name).read_bytes())
    check_against_loop(DirectNormLoss(len(T_EMB), nd_loss_factor=2.5), T_EMB, D, factor=2.5)


def test_keys_with_gaps_against_the_loop() -> None:
    T_EMB = {"7": [1.0] * 4 + [0.5] * 4, "3": [0.5, 2.0] * 4, "11": [3.0, 0.1] * 4}
    check_against_loop(DirectNormLoss(), T_EMB, 8, factor=1.0)


def test_worked_by_hand() -> None:
    s_emb = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    t_emb = torch.tensor([[1.0, 0.0], [0.0, 10.0]])
    loss = DirectNormLoss(3)(s_emb, t_emb, T_EMB, torch.tensor([1, 2]))
    assert loss.item() == pytest.approx(((1 - 5 / 5) + (1 - 4 / 10)) / 2)


S, T, LABELS = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([0])
LOSS = 1 - 3 / 5


@pytest.mark.parametrize(
    ("module", "factor"),
    [
        (lambda: DirectNormLoss(), 1.0),
        (lambda: DirectNormLoss(100), 1.0),
        (lambda: DirectNormLoss(100, 3), 3.0),
        (lambda: DirectNormLoss(num_class=1000, nd_loss_factor=0.0), 0.0),
        (lambda: DirectNormLoss(num_class=81, nd_weight=1.5), 1.5),
        (lambda: DirectNormLoss(81, nd_weight=0.5, backend="reference"), 0.5),
    ],
)
def test_every_way_to_call(module: object, factor: float) -> None:
    loss_fn = module()  # type: ignore[operator]
    assert loss_fn(S, T, T_EMB, LABELS).item() == pytest.approx(factor * LOSS)
    by_name = loss_fn(s_emb=S, t_emb=T, T_EMB=T_EMB, labels=LABELS)
    assert by_name.item() == pytest.approx(factor * LOSS)


def test_class_means_as_a_tensor() -> None:
    means = torch.tensor([T_EMB[str(k)] for k in range(3)])
    assert DirectNormLoss()(S, T, means, LABELS).item() == pytest.approx(LOSS)


def test_one_centre_a_row() -> None:
    s_emb, t_emb, labels, seed = draw(10, 2, [0, 1, 2])
    centres = torch.tensor([T_EMB[str(k)] for k in labels.tolist()])
    loss = DirectNormLoss()(s_emb=s_emb, t_emb=t_emb, T_EMB=centres, labels=None)
    expected = loss_of_each_sample(s_emb.double(), t_emb.double(), T_EMB, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6), f"seed {seed}"


def test_the_factor_may_change_between_steps() -> None:
    loss_fn = DirectNormLoss(100, 1.0)
    loss_fn.nd_loss_factor = 4.0
    assert loss_fn(S, T, T_EMB, LABELS).item() == pytest.approx(4 * LOSS)


def test_an_ignored_row_does_not_count() -> None:
    s_emb, t_emb = torch.cat([S, S * torch.nan]), torch.cat([T, T])
    loss = DirectNormLoss()(s_emb, t_emb, T_EMB, torch.tensor([0, -100]))
    assert loss.item() == pytest.approx(LOSS)


def test_the_dict_becomes_a_tensor_once(monkeypatch: pytest.MonkeyPatch) -> None:
    converted = []

    def counting(name: str, class_dict: dict) -> tuple:
        converted.append(class_dict)
        return stack_class_dict(name, class_dict)

    stack_class_dict = compat.stack_class_dict
    monkeypatch.setattr(compat, "stack_class_dict", counting)
    loss_fn, class_dict = DirectNormLoss(), dict(T_EMB)
    for _ in range(3):
        loss_fn(S, T, class_dict, LABELS)
    loss_fn(S, T, dict(class_dict), LABELS)  # another dict of the same lists
    assert len(converted) == 1

    class_dict["0"] = [0.0, 2.0]  # another list under the same key
    assert loss_fn(S, T, class_dict, LABELS).item() == pytest.approx(1 - 4 / 5)
    assert len(converted) == 2
    swapped = dict(zip(("2", "1", "0"), class_dict.values(), strict=True))  # the same lists
    assert loss_fn(S, T, swapped, LABELS).item() == pytest.approx(0.0)
    assert len(converted) == 3


def test_a_dict_that_lives_no_longer_than_the_call() -> None:
    loss_fn = DirectNormLoss()
    for k in range(20):  # a new dict may well get the address of the last one
        angle = torch.tensor(float(k))
        loss = loss_fn(S, T, {"0": [angle.cos().item(), angle.sin().item()]}, LABELS)
        expected = 1 - (3 * angle.cos() + 4 * angle.sin()) / 5
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_inputs_are_left_alone() -> None:
    class_dict, labels, s_emb, t_emb = copy.deepcopy((T_EMB, LABELS, S, T))
    DirectNormLoss()(s_emb, t_emb, class_dict, labels)
    assert class_dict == T_EMB
    assert list(class_dict) == list(T_EMB)
    assert torch.equal(labels, LABELS)
    assert torch.equal(s_emb, S)
    assert torch.equal(t_emb, T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_other_dtypes(dtype: torch.dtype) -> None:
    loss_fn = DirectNormLoss()
    for kind in (torch.float32, dtype):
        loss = loss_fn(S.to(kind), T.to(kind), T_EMB, LABELS)
        assert loss.item() == pytest.approx(LOSS)
        assert loss.dtype == (torch.float64 if kind == torch.float64 else torch.float32)


def test_training_after_a_step_in_inference_mode() -> None:
    loss_fn = DirectNormLoss()
    with torch.inference_mode():
        loss_fn(S, T, T_EMB, LABELS)
    s_emb = S.clone().requires_grad_()
    loss_fn(s_emb, T, T_EMB, LABELS).backward()
    assert s_emb.grad is not None


def test_checkpoints_and_copies() -> None:
    loss_fn = DirectNormLoss(nd_loss_factor=2.0)
    loss_fn(S, T, T_EMB, LABELS)
    assert loss_fn.state_dict() == {}
    assert copy.deepcopy(loss_fn)(S, T, T_EMB, LABELS).item() == pytest.approx(2 * LOSS)
    assert repr(loss_fn) == "DirectNormLoss(num_class=100, nd_loss_factor=2.0)"


@pytest.mark.parametrize("convert", [tuple, np.array, torch.tensor])
def test_a_dict_of_arrays(convert: Callable[[list[float]], Any]) -> None:
    arrays = {key: convert(values) for key, values in T_EMB.items()}
    assert DirectNormLoss()(S, T, arrays, LABELS) == DirectNormLoss()(S, T, T_EMB, LABELS)
    with pytest.raises(TypeError, match="T_EMB: class 0 holds str"):
        DirectNormLoss()(S, T, {"0": "a mean"}, LABELS)


def test_compiled_with_a_tensor() -> None:
    torch._dynamo.reset()
    loss_fn, class_means = DirectNormLoss(2), torch.eye(2)
    compiled = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    expected = loss_fn(S, T, class_means, LABELS)
    torch.testing.assert_close(compiled(S, T, class_means, LABELS), expected)


@pytest.mark.parametrize("label", [1, 3, 5, -1])
def test_a_class_that_the_dict_lacks(label: int) -> None:
    class_dict = {"4": [1.0, 0.0], "0": [0.0, 1.0]}
    with pytest.raises(KeyError, match=f"T_EMB: holds no class {label}, which occurs in labels"):
        DirectNormLoss()(S.expand(3, 2), T.expand(3, 2), class_dict, torch.tensor([4, label, 0]))


@pytest.mark.parametrize(
    ("class_dict", "message"),
    [
        ({}, "T_EMB: holds no class"),
        ({"0": [1.0, 2.0], "cat": [1.0, 2.0]}, "T_EMB: key 'cat' is no class index"),
        ({"00": [1.0, 2.0]}, "T_EMB: key '00' is no class index"),
        ({"-1": [1.0, 2.0]}, "T_EMB: key '-1' is no class index"),
        ({0: [1.0, 2.0]}, "T_EMB: key 0 is no class index"),
        ({"0": [1.0, 2.0], "5": [1.0]}, "T_EMB: class 5 holds 1 values; expected 2"),
        ({"0": [1.0, torch.nan]}, "T_EMB: class 0, column 1 is nan"),
        ({"0": [1.0, None]}, "T_EMB: class 0, column 1 is None"),
        ({"0": [1.0, 2.0, 3.0]}, r"T_EMB: got shape \[1, 3\]; for s_emb \[1, 2\]"),
    ],
)
def test_bad_dicts(class_dict: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DirectNormLoss()(S, T, class_dict, LABELS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((S, T, [[1.0, 0.0]], LABELS), TypeError, "T_EMB: got list"),
        ((S, T, T_EMB, None), ValueError, "labels: got None"),
        ((S, T, T_EMB, torch.eye(2)[:1]), TypeError, "labels: got dtype torch.float32"),
        ((S, T, T_EMB, [0]), TypeError, "labels: got list"),
        (([[3.0, 4.0]], T, T_EMB, LABELS), TypeError, "s_emb: got list"),
        ((S, T[:, :1], T_EMB, LABELS), ValueError, "t_emb: got shape"),
        ((S, T, T_EMB, torch.tensor([0, 1])), ValueError, "labels: got shape"),
        ((S, T, torch.eye(2), torch.tensor([2])), IndexError, "labels: class 2 in row 0 .* T_EMB"),
    ],
)
def test_bad_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DirectNormLoss()(*arguments)


def test_bad_factors() -> None:
    with pytest.raises(TypeError, match="nd_weight: is another name of nd_loss_factor"):
        DirectNormLoss(100, 1.0, nd_weight=1.0)
    with pytest.raises(TypeError, match="nd_loss_factor: got str"):
        DirectNormLoss(100, nd_weight="2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend: 'metal' is no backend"):
        DirectNormLoss(backend="metal")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_on_a_gpu_only_the_first_step_waits() -> None:
    loss_fn = DirectNormLoss()
    arguments = S.cuda(), T.cuda(), T_EMB, LABELS.cuda()
    loss_fn(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = loss_fn(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.item() == pytest.approx(LOSS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("label", [1, 5, -1])
def test_on_a_gpu_a_class_that_the_dict_lacks_is_nan(label: int) -> None:
    class_dict = {"4": [1.0, 0.0], "0": [0.0, 1.0]}
    loss = DirectNormLoss()(S.cuda(), T.cuda(), class_dict, torch.tensor([label]).cuda())
    assert loss.isnan()
