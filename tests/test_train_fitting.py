"""What in a checkpoint is the network: nestings, prefixes, teachers, averages, what fits twice."""

from __future__ import annotations

import argparse
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saved_weights import assert_read, assert_refused, build
from torch import Tensor, nn

from ndfast.train.errors import ConfigError
from ndfast.train.models.fitting import find_weights

State = dict[str, Tensor]


def under(prefix: str, network: nn.Module) -> State:
    return {prefix + name: value for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("prefix", "nesting"),
    [
        ("", ("model_state_dict",)),
        ("", ("net",)),
        ("", ("network",)),
        ("", ("student",)),
        ("", ("teacher",)),
        ("", ("ema",)),
        ("", ("weights",)),
        ("", ("params",)),
        ("", ("anything",)),
        ("", ("optimal",)),
        ("", ("a", "b", "c", "d")),
        ("module.", ("model_state_dict",)),
        ("model.", ("state_dict",)),
        ("net.", ("state_dict",)),
        ("backbone.", ("state_dict",)),
        ("network.", ()),
        ("student.", ("state_dict",)),
        ("teacher.", ("state_dict",)),
        ("module.student.", ("model",)),
        ("_orig_mod.module.", ("state_dict",)),
        ("model._orig_mod.", ("state_dict",)),
        ("any.thing.", ()),
    ],
)
def test_wherever_it_is(prefix: str, nesting: tuple[str, ...], tmp_path: Path, seed: int) -> None:
    saved = build()
    content: dict[str, Any] = under(prefix, saved)
    if prefix:
        content |= {"criterion.weight": torch.ones(3), "nd.class_means": torch.ones(10, 16)}
    for key in reversed(nesting):
        content = {"epoch": 240, key: content, "optimizer": {"state": {0: {"m": torch.ones(3)}}}}
    torch.save(content, tmp_path / "w")
    assert_read(tmp_path / "w", saved)


def test_kdpps_own_trainer(tmp_path: Path, seed: int) -> None:
    """Its WRN calls the last normalisation bn, not bn1 as the others do."""
    saved = build("wrn_16_2")
    theirs = {}
    for name, value in saved.state_dict().items():
        for ours, published in (
            ("stem.0.", "conv1."),
            ("stem.1.", "block1.layer.0.bn1."),
            ("stages.0.2.", "block2.layer.0.bn1."),
            ("stages.1.2.", "block3.layer.0.bn1."),
            ("stages.2.2.", "bn."),
            ("stages.0.", "block1.layer."),
            ("stages.1.", "block2.layer."),
            ("stages.2.", "block3.layer."),
            ("classifier.", "fc."),
        ):
            if name.startswith(ours):
                name = published + name.removeprefix(ours).replace("shortcut", "convShortcut")
                break
        theirs[f"module.{name}"] = value
    optimizer = torch.optim.SGD(saved.parameters(), 0.1, momentum=0.9)
    sum(parameter.sum() for parameter in saved.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    content = {
        "epoch": 240,
        "model_state_dict": theirs,
        "optimizer_state_dict": optimizer.state_dict(),
        "best_error": 0.27,
        "train_acc": [0.1, np.float64(0.2)],
    }
    torch.save(content, tmp_path / "ckpt.pth")
    assert_read(tmp_path / "ckpt.pth", saved, "wrn_16_2")


def averaged(network: nn.Module) -> State:
    """As torch.optim.swa_utils.AveragedModel has it."""
    return {**under("module.", network), "n_averaged": torch.tensor(3)}


RIGHT_AND_WRONG: dict[str, Callable[[nn.Module, nn.Module], dict[str, Any]]] = {
    "mdistiller": lambda right, wrong: {
        "model": under("module.student.", right) | under("module.teacher.", wrong)
    },
    "student": lambda right, wrong: {"teacher": under("", wrong), "student": under("", right)},
    "_s": lambda right, wrong: {"model_t": under("", wrong), "model_s": under("", right)},
    "_t": lambda right, wrong: {"net_t": under("", wrong), "net": under("", right)},
    "t_": lambda right, wrong: {"state_dict": under("t_model.", wrong) | under("s_model.", right)},
    "tea": lambda right, wrong: {"tea": under("", wrong), "stu": under("", right)},
    "T": lambda right, wrong: {"S": under("", right), "T": under("", wrong)},
    "no student": lambda right, wrong: {
        "teacher_state_dict": under("", wrong),
        "other": under("", right),
    },
    "timm": lambda right, wrong: {
        "state_dict": under("", wrong),
        "state_dict_ema": under("", right),
    },
    "torchvision": lambda right, wrong: {"model": under("", wrong), "model_ema": averaged(right)},
    "ema.": lambda right, wrong: {"state_dict": under("ema.", right) | under("model.", wrong)},
    "usual": lambda right, wrong: {"model": under("", right), "best": under("", wrong)},
    "Lightning": lambda right, wrong: {
        "state_dict": under("model.", right),
        "current_model_state": under("model.", wrong),
    },
    "optimizer": lambda right, wrong: {
        "best": under("", right),
        "optimizer_states": {"exp_avg": under("", wrong)},
    },
    "same": lambda right, wrong: {"a": under("", right), "b": under("module.", right)},
}


@pytest.mark.parametrize("whose", RIGHT_AND_WRONG)
def test_which_of_two(whose: str, tmp_path: Path, seed: int) -> None:
    right, wrong = build(), build()
    torch.save(RIGHT_AND_WRONG[whose](right, wrong), tmp_path / "w")
    assert_read(tmp_path / "w", right)


def test_of_student_and_teacher_the_one_that_fits(tmp_path: Path, seed: int) -> None:
    student, teacher = build(), build("convnet32")
    content = {"model": under("module.student.", student) | under("module.teacher.", teacher)}
    torch.save(content, tmp_path / "w")
    assert_read(tmp_path / "w", student)
    assert_read(tmp_path / "w", teacher, "convnet32")


@pytest.mark.parametrize("names", [("a", "b"), ("model", "net"), ("student", "model")])
def test_two_that_nothing_tells_apart(names: tuple[str, str], tmp_path: Path, seed: int) -> None:
    expected = f"holds several networks that fit, at {names[0]} and {names[1]}; expected one: "
    torch.save({name: build().state_dict() for name in names}, tmp_path / "w")
    assert_refused(tmp_path / "w", expected)
    first, second = names
    torch.save(under(f"{first}.", build()) | under(f"{second}.", build()), tmp_path / "w")
    assert_refused(tmp_path / "w", expected)


def test_what_is_amiss_is_told_of_the_nearest(tmp_path: Path, seed: int) -> None:
    saved = build()
    state = under("module.", saved)
    extra = {"module.embed.weight": torch.ones(3)}
    torch.save({"args": argparse.Namespace(), "state_dict": state | extra}, tmp_path / "w")
    assert_refused(tmp_path / "w", r"does not fit the network: it has besides embed\.weight$")
    torch.save({"model_state_dict": under("module.", build("convnet32"))}, tmp_path / "w")
    assert_refused(tmp_path / "w", r"other shapes: stages\.0\.1\.weight \[32, 3, 3, 3\] in place")
    torch.save({"model": under("module.", build("resnet20"))}, tmp_path / "w")
    smaller = r"does not fit the network: it lacks stages\.0\.3\.conv1\.weight, [^;]* more$"
    assert_refused(tmp_path / "w", smaller, "resnet56")
    both = {**saved.state_dict(), "conv1.weight": torch.ones(3), "fc.weight": torch.ones(3)}
    torch.save(both, tmp_path / "w")
    assert_refused(tmp_path / "w", r"it has besides conv1\.weight, fc\.weight$")
    resnet = build("resnet20")
    twice = {**resnet.state_dict(), "fc.weight": resnet.state_dict()["classifier.weight"]}
    torch.save(twice, tmp_path / "w")
    assert_refused(tmp_path / "w", r"it has besides fc\.weight$", "resnet20")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda value: value.to(torch.int8), r"\[10, 16\] of torch\.int8"),
        (lambda value: value.to(torch.complex64), r"\[10, 16\] of torch\.complex64"),
        (lambda value: value.to("meta"), "without values"),
        (lambda value: value.to_sparse(), "that is sparse, nested or quantised"),
        (lambda value: value.numpy(), "NumpyArray"),
    ],
    ids=["int8", "complex", "meta", "sparse", "numpy"],
)
def test_tensors_of_other_kinds(
    change: Callable[[Tensor], Any], found: str, tmp_path: Path, seed: int
) -> None:
    state = dict(build().state_dict())
    state["classifier.weight"] = change(state["classifier.weight"])
    torch.save({"model": state}, tmp_path / "w")
    assert_refused(
        tmp_path / "w", rf"other shapes: classifier\.weight {found} in place of \[10, 16\]$"
    )


def test_a_weight_too_large_for_the_network(tmp_path: Path) -> None:
    state = build().double().state_dict()
    state["classifier.bias"].fill_(1e300)
    torch.save(state, tmp_path / "w")
    assert_refused(tmp_path / "w", r"NaN or Inf in classifier\.bias; expected finite weights$")


def test_counters_of_an_average(tmp_path: Path, seed: int) -> None:
    saved = build()
    torch.save({name: value.float() for name, value in saved.state_dict().items()}, tmp_path / "w")
    assert_read(tmp_path / "w", saved)


class WithItems:
    """Pickled as an OrderedDict that has an attribute `items`."""

    def __init__(self, state: State) -> None:
        self.reduced = OrderedDict, (), {"items": 3}, None, iter(list(state.items()))

    def __reduce__(self) -> tuple:
        return self.reduced


def test_attributes_in_a_pickle_hide_no_method(tmp_path: Path, seed: int) -> None:
    saved = build()
    state = saved.state_dict()
    weight = nn.Parameter(saved.classifier.weight.detach().clone())
    for name in ("to", "isfinite", "is_floating_point"):
        setattr(weight, name, 3)
    state["classifier.weight"] = weight
    torch.save(WithItems(state), tmp_path / "w")
    assert_read(tmp_path / "w", saved)


@pytest.mark.parametrize("what", ["dots", "dicts"])
def test_hostile_depth_takes_no_memory_by_its_square(what: str) -> None:
    content: dict[str, Any] = {"." * 5000: 1}
    if what == "dicts":
        for _ in range(5000):
            content = {"a": content}
    wanted = build().state_dict()
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="does not fit the network"):
            find_weights(content, wanted, ())
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20  # of 5000 long ones it is 100 MB
    finally:
        tracemalloc.stop()
