"""The recipes hold the paper's factors, and their pairs of networks train by them."""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision_ops", reason="needs torchvision")  # before timm

from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from rich.console import Console
from safetensors.torch import load_file, save_file
from small_runs import events

from ndfast.train.commands import add_train, read_config
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.distill.distiller import Distiller
from ndfast.train.distill.teacher import Teacher
from ndfast.train.models import build_model
from ndfast.train.recipes import FOLDER, load_recipe, recipe_names
from ndfast.train.runs.run import run, teacher_config

# Factors of the authors' scripts for KD++ (kd, nd), DKD++ (tckd, nckd, nd), DIST++ (kd, nd) and
# ReviewKD++ (kd, nd), all beside 1 for cross entropy.
CIFAR = {
    "resnet56-resnet20": ((1, 2), (2.5, 4, 3.5), (2, 1), (1.2, 1)),
    "resnet32x4-resnet8x4": ((3.5, 2), (2, 8, 0.5), (1.5, 4), (8, 1)),
    "wrn_40_2-wrn_40_1": ((1, 1.5), (1, 6, 1), (2.5, 3), (5, 4)),
    "resnet50-mobilenetv2": ((3, 0.5), (0.5, 8, 1), (7, 1), (6, 2)),
    "resnet32x4-shufflenetv1": ((2.5, 1.5), (0.5, 8, 4), (2.5, 3), (7, 1)),
    "resnet32x4-shufflenetv2": ((4, 0.5), (0.5, 6, 0.5), (3, 4), (8, 1.5)),
}
# The same without DIST++, and for ViT teachers without ReviewKD++.
IMAGENET = {
    "resnet34-resnet18": ((2.5, 1), (0.8, 0.5, 1), (1, 3)),
    "resnet50-resnet18": ((4, 1), (0.6, 0.5, 2), (3, 2)),
    "resnet101-resnet18": ((3.5, 4), (0.8, 0.5, 1), (3, 1)),
    "resnet152-resnet18": ((4, 2), (1, 1, 1), (3, 1)),
    "resnet50-mobilenetv1": ((4, 1), (0.8, 1, 1), (8, 4)),
    "vit_small-resnet18": ((1.5, 1), (1, 1, 2)),
    "vit_base-resnet18": ((2, 1), (1.4, 0.5, 2)),
}
OTHERS = {
    "digits",
    "mnist1d",
    "imagenet-regnety_160-deit_base",
    "imagenet-resnet34-resnet18-large_batch",
}
# A step of the others, whose networks are larger, shows nothing that those and `Distiller` do not.
SMALL = ("digits", "mnist1d", "cifar100-resnet56-resnet20")

SGD = {
    "ce_weight": 1.0,
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "decay_norms": True,
    "schedule": "step",
    "lr_gamma": 0.1,
    "lr_warmup": 0,
    "class_means": "augmented",
}
ON_CIFAR = SGD | {
    "data": "cifar100",
    "epochs": 240,
    "batch_size": 128,
    "weight_decay": 5e-4,
    "milestones": (150, 180, 210),
    "temperature": 4.0,
    "distill_warmup": 20,
    "nd_warmup": 0,
}
ON_IMAGENET = SGD | {
    "data": "imagenet",
    "image_size": None,  # 224
    "epochs": 100,
    "batch_size": 512 // 8,
    "lr": 0.2,
    "weight_decay": 1e-4,
    "milestones": (30, 60, 90),
    "temperature": 1.0,
    "distill_warmup": 5,
}


def image_shape(name: str) -> tuple[int, ...]:
    """Small where the networks take any size."""
    return {"digits": (1, 8, 8), "mnist1d": (1, 40)}.get(name, (3, 32, 32))


def read(name: str, method: str) -> TrainConfig:
    """The config of the command in a recipe's comment, with a method."""
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").replace("\\\n#", "")
    (command,) = [line for line in text.splitlines() if line.startswith("#   ")]
    flags = shlex.split(command.split(" train ")[-1])
    assert flags == ["--recipe", name, "--data-dir", "DIR"]
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_train(parser)
    return read_config(parser.parse_args([*flags, "--method", method]))


def check(config: TrainConfig, expected: dict[str, Any]) -> None:
    assert {name: getattr(config, name) for name in expected} == expected


def factors(config: TrainConfig) -> tuple[float, ...]:
    distillation = {
        "kd++": (1.0,),
        "dkd++": (config.dkd_alpha, config.dkd_beta),
        "dist++": (config.dist_beta,),
        "reviewkd++": (1.0,),
    }[config.method]
    return (*(config.distill_weight * factor for factor in distillation), config.nd_weight)


def test_there_is_one_for_each_line_of_the_tables() -> None:
    expected = {f"cifar100-{pair}" for pair in CIFAR} | {f"imagenet-{pair}" for pair in IMAGENET}
    assert set(recipe_names()) == expected | OTHERS


@pytest.mark.parametrize("pair", CIFAR)
def test_cifar_100_is_trained_as_in_the_paper(pair: str) -> None:
    methods = ["kd++", "dkd++", "dist++", "reviewkd++"]
    found = [read(f"cifar100-{pair}", method) for method in methods]
    assert tuple(map(factors, found)) == CIFAR[pair]
    teacher, model = pair.split("-")
    light = model in ("mobilenetv2", "shufflenetv1", "shufflenetv2")
    for config in found:
        check(config, ON_CIFAR | {"teacher": teacher, "model": model, "lr": 0.02 if light else 0.1})
        check(config, {"linear_init": "normal" if model.startswith("resnet") else "zero_bias"})
        assert config.dist_beta == config.dist_gamma
        assert teacher_config(config).lr == 0.1


@pytest.mark.parametrize("pair", IMAGENET)
def test_imagenet_is_trained_as_in_the_paper(pair: str) -> None:
    methods = ["kd++", "dkd++", "reviewkd++"][: len(IMAGENET[pair])]
    found = [read(f"imagenet-{pair}", method) for method in methods]
    assert tuple(map(factors, found)) == IMAGENET[pair]
    for config in found:
        check(config, ON_IMAGENET | {"nd_warmup": 5 if config.method == "dkd++" else 0})
        check(config, {"linear_init": None if pair == "resnet34-resnet18" else "normal"})


def test_deit_is_trained_as_in_the_paper() -> None:
    config = read("imagenet-regnety_160-deit_base", "kd++")
    assert factors(config) == (0.5, 1.5)
    assert config.batch_size * 8 == 2048
    assert config.lr == pytest.approx(1e-4 * 2048 / 256)
    expected = {"epochs": 300, "optimizer": "adamw", "weight_decay": 0.3, "decay_norms": False}
    check(config, expected | {"schedule": "cosine", "lr_warmup": 20, "distill_warmup": 5})
    check(config, {"label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "temperature": 1.0})
    check(config, {"class_means": "augmented", "linear_init": "normal"})


def test_large_batches_are_what_the_comment_says() -> None:
    config, same = (
        read(name, "kd++")
        for name in ("imagenet-resnet34-resnet18-large_batch", "imagenet-resnet34-resnet18")
    )
    for name in ("data", "teacher", "model", "class_means", "linear_init"):
        assert getattr(config, name) == getattr(same, name)
    assert factors(config) == factors(same)
    assert config.batch_size * 8 * config.accumulate == 4096
    assert config.lr == pytest.approx(8e-3 * math.sqrt(4096 / 2048), rel=2e-3)


def test_pretrained_teachers_are_timms() -> None:
    import timm

    published = {f"timm:{name}" for name in timm.list_pretrained()}
    recipes = [load_recipe(name) for name in recipe_names() if name.startswith("imagenet")]
    assert {recipe["teacher_weights"] for recipe in recipes} == {"pretrained"}
    assert {recipe["teacher"] for recipe in recipes} <= published


@pytest.mark.parametrize("name", recipe_names())
def test_the_pair_gives_every_loss(name: str) -> None:
    """On the meta device, where networks of any size take no time."""
    methods = ("kd++",) if "vit" in name or "deit" in name else ("kd++", "reviewkd++")
    configs = [TrainConfig(**load_recipe(name, method)) for method in methods]
    shape = image_shape(name)
    with torch.device("meta"):
        student, network = (
            build_model(model, 2, shape) for model in (configs[0].model, configs[0].teacher)
        )
        teacher = Teacher(network.eval(), torch.empty(2, network.dim), {})
        images, labels = torch.empty(2, *shape), torch.empty(2, dtype=torch.int64)
        for config in configs:
            distiller = Distiller(student, config, teacher)
            losses = distiller(images, labels, teacher(images))
            assert losses.keys() - {"accuracy"} == {"ce", "distillation", "nd"}
            distiller.zero_grad()
            sum(losses[loss] for loss in ("ce", "distillation", "nd")).backward()
            assert all(parameter.grad is not None for parameter in distiller.parameters())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Emptied afterwards: pytest keeps tmp_path, and checkpoints take up to a gigabyte."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in SMALL else [pytest.mark.long])
        for name in recipe_names()
    ],
)
def test_one_step(name: str, folder: Path) -> None:
    shape = image_shape(name)
    recipe = load_recipe(name)
    weights = folder / "teacher.safetensors"  # in place of timm's, or of one that is trained first
    save_file(build_model(recipe["teacher"], 2, shape).state_dict(), weights)
    changes = {
        "data": f"synthetic:4,2,{'x'.join(map(str, shape))}",
        "teacher_weights": str(weights),
        "batch_size": 2,
        "compile": False,
        "workers": 0,
        "max_steps": 1,
        "log_every": 1,
        "out": str(folder / "run"),
    }
    config = TrainConfig(**{**recipe, **changes})
    AcceleratorState._reset_state()  # one process has one precision otherwise
    results = run(config, Console(quiet=True))
    assert (results["steps"], results["skipped"]) == (1, 0)
    (step,) = events(folder / "run", "step")
    assert set(step["losses"]) == {"ce", "distillation", "nd"}
    assert all(map(math.isfinite, [step["loss"], *step["losses"].values()]))
    set_seed(config.seed)
    before = build_model(config.model, 2, shape)
    after = load_file(folder / "run" / "model.safetensors")
    for key, parameter in before.named_parameters():
        assert parameter.dim() == 1 or not torch.equal(after[key], parameter), key
