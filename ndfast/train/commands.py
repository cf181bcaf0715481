"""The commands `ndfast train`, `compare`, `detect`, `teacher-outputs`, `class-means --teacher`."""

from __future__ import annotations

import argparse
from typing import Any

from ndfast.files import expand_home
from ndfast.train.config.detection_config import DetectionConfig
from ndfast.train.config.flags import add_flags, given_flags
from ndfast.train.config.methods import METHODS
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.engine.verdicts import in_words
from ndfast.train.errors import ConfigError
from ndfast.train.models import MODELS
from ndfast.train.recipes import load_recipe, recipe_names

_SEEDS = 5
_OF_ONE_RUN = ("probe", "check_loss", "max_steps", "ema")  # a comparison has its own
_OF_CLASS_MEANS = (
    "data",
    "data_dir",
    "image_size",
    "teacher",
    "teacher_weights",
    "precision",
    "channels_last",
    "workers",
    "threads",
)
_OF_TEACHER_OUTPUTS = (*_OF_CLASS_MEANS, "class_means", "epochs", "seed", "data_seed", "compile")
_PROCESSES = (
    "Device and processes are what Hugging Face Accelerate finds: ACCELERATE_USE_CPU=true keeps to "
    "the CPU; torchrun or `accelerate launch -m ndfast` starts several processes."
)


def add_train(parser: argparse.ArgumentParser) -> None:
    """The flags of `ndfast train`."""
    learned = parser.add_argument_group("what is learned from")
    learned.add_argument(
        "--method",
        nargs="+",
        choices=METHODS,
        metavar="METHOD",
        default=argparse.SUPPRESS,
        help=f"of {', '.join(METHODS)} (default: kd++); several are compared, as `ndfast compare` "
        "does it",
    )
    learned.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        default=None,
        help=f"compare students of N seeds, from --seed on (default: one student; of several "
        f"methods {_SEEDS} each)",
    )
    _add_step_times(learned)
    _add_recipe(parser)
    add_flags(parser, TrainConfig, skip=("method",))
    parser.usage = "ndfast train [--method METHOD ...] [--seeds N] [--recipe NAME] [FLAG ...]"
    parser.epilog = _PROCESSES


def add_compare(parser: argparse.ArgumentParser) -> None:
    """The flags of `ndfast compare`."""
    compared = parser.add_argument_group("what is compared")
    compared.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        metavar="METHOD",
        default=["ce", "kd", "kd++"],
        help=f"of {', '.join(METHODS)} (default: ce kd kd++)",
    )
    compared.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        default=_SEEDS,
        help=f"students a method, of as many seeds from --seed on (default: {_SEEDS})",
    )
    _add_step_times(compared)
    _add_recipe(parser)
    add_flags(parser, TrainConfig, skip=("method", *_OF_ONE_RUN))
    parser.usage = "ndfast compare [--methods METHOD ...] [--seeds N] [--recipe NAME] [FLAG ...]"
    parser.epilog = _PROCESSES


def add_make_class_means(parser: argparse.ArgumentParser) -> None:
    """The flags of `ndfast class-means` that make a file."""
    help_texts = {
        "teacher": f"makes a file: timm:NAME, or one of {', '.join(MODELS)}",
        "teacher_weights": "its checkpoint, or `pretrained` for timm's weights; needed with "
        "--teacher",
    }
    add_flags(parser, TrainConfig, only=_OF_CLASS_MEANS, help_texts=help_texts)
    making = parser.add_argument_group("what is written")
    making.add_argument(
        "--out",
        type=expand_home,
        metavar="FILE",
        help=".safetensors or .npz; needed with --teacher",
    )
    making.add_argument(
        "--augmented",
        action="store_true",
        help="over images augmented as in training, as KD++'s authors have them",
    )


def add_teacher_outputs(parser: argparse.ArgumentParser) -> None:
    """The flags of `ndfast teacher-outputs`."""
    help_texts = {
        "epochs": "to be made, where each has views of its own (folders of images; --per-epoch)",
        "teacher_weights": "its checkpoint, or `pretrained` for timm's weights; needed",
    }
    _add_recipe(parser)
    add_flags(parser, TrainConfig, only=_OF_TEACHER_OUTPUTS, help_texts=help_texts)
    writing = parser.add_argument_group("what is written")
    writing.add_argument(
        "--out", type=expand_home, metavar="DIR", required=True, help="the folder of the outputs"
    )
    writing.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the logits: float32 is exact to the bit, float16 half the size (default: float32)",
    )
    writing.add_argument(
        "--per-epoch",
        action="store_true",
        help="keep the views of --epochs epochs for one --data-seed, also where the views are "
        "finitely many: smaller where the epochs are fewer than these",
    )
    parser.usage = "ndfast teacher-outputs --teacher-weights FILE --out DIR [FLAG ...]"
    parser.epilog = _PROCESSES


def add_detect(parser: argparse.ArgumentParser) -> None:
    """The flags of `ndfast detect`."""
    add_flags(parser, DetectionConfig)
    parser.usage = "ndfast detect [--methods METHOD ...] [FLAG ...]"
    parser.epilog = _PROCESSES


def train(given: argparse.Namespace) -> str | None:
    """Runs `ndfast train`; several methods, or --seeds, are a comparison.

    Returns:
        None, or a sentence on where the fused loss and the reference disagree.
    """
    from rich.console import Console

    config = read_config(given)
    methods = vars(given).get("method", [config.method])
    if len(methods) > 1 or given.seeds is not None:
        for name in _OF_ONE_RUN:
            if name in given:
                raise ConfigError(
                    f"{name}: is of a single run; several methods and --seeds take none"
                )
        return _compare(given, methods, _SEEDS if given.seeds is None else given.seeds)
    if given.step_times:
        raise ConfigError("step_times: got it for a single run; expected several methods or seeds")
    if config.check_loss and not (METHODS[config.method].nd or config.probe):
        raise ConfigError(
            f"check_loss: got it with {config.method}, which has no ND loss; expected a method "
            "with it, as kd++"
        )

    from ndfast.train.runs.run import run

    return _refused({config.method: run(config, Console())["loss_check"]})


def compare(given: argparse.Namespace) -> str | None:
    """Runs `ndfast compare`; returns as `train`."""
    return _compare(given, given.methods, given.seeds)


def _compare(given: argparse.Namespace, methods: list[str], seeds: int) -> str | None:
    from rich.console import Console

    from ndfast.train.compare.comparison import compare

    if seeds < 1:
        raise ConfigError(f"seeds: got {seeds}; expected 1 or more")
    configs = {method: read_config(given, method) for method in methods}
    return _refused(compare(configs, seeds, Console(), given.step_times)["loss_checks"])


def _refused(checks: dict[str, dict[str, Any] | None]) -> str | None:
    """On the first of the methods whose check says so."""
    for method, found in checks.items():
        if found is not None and found["refused"] is not None:
            return in_words(method, found["refused"])
    return None


def detect(given: argparse.Namespace) -> None:
    """Runs `ndfast detect`."""
    from rich.console import Console

    from ndfast.train.detection.run import run

    run(DetectionConfig(**given_flags(given, DetectionConfig)), Console())


def flags_of_making(given: argparse.Namespace) -> list[str]:
    """Those flags of `ndfast class-means` that were given and are for making a file alone."""
    names = [name for name in _OF_CLASS_MEANS if name in given]
    names += ["out"] if given.out is not None else []
    return [*names, "augmented"] if given.augmented else names


def make_class_means(given: argparse.Namespace) -> None:
    """Runs `ndfast class-means --teacher ...`."""
    from rich.console import Console

    from ndfast.train.distill.make_class_means import make_class_means

    if given.out is None:
        raise ConfigError("out: got none; expected the file to write, .safetensors or .npz")
    if given.to is not None:
        raise ConfigError("to: is for a file that is shown; a file that is made takes --out")
    chosen = given_flags(given, TrainConfig)
    chosen.pop("out", None)
    if "teacher_weights" not in chosen:
        raise ConfigError("teacher_weights: got none; expected a checkpoint, or `pretrained`")
    make_class_means(TrainConfig(**chosen), given.out, given.augmented, Console())


def make_teacher_outputs(given: argparse.Namespace) -> None:
    """Runs `ndfast teacher-outputs`."""
    import torch
    from rich.console import Console

    from ndfast.train.distill.make_teacher_outputs import make_teacher_outputs

    out = given.out
    del given.out  # a run's is another
    config = read_config(given)
    if config.teacher_weights is None:
        raise ConfigError("teacher_weights: got none; expected a checkpoint, or `pretrained`")
    dtype = torch.float16 if given.dtype == "float16" else torch.float32
    make_teacher_outputs(config, out, dtype, given.per_epoch, Console())


def read_config(given: argparse.Namespace, method: str | None = None) -> TrainConfig:
    """The config of a command line: the recipe's fields, and over them the flags.

    Without --recipe it is the recipe of the data set's name where there is one; without --data
    either, digits.

    Args:
        given: what `add_train` or `add_compare` parsed.
        method: of the run; by default the first of --method, or the recipe's, or kd++.
    """
    flags = given_flags(given, TrainConfig)
    first, *_ = flags.pop("method", (None,))
    method = method or first
    name = given.recipe
    if name is None:
        data = flags.get("data", "digits")
        name = data if data in recipe_names() else None
    recipe = {"method": method or "kd++"} if name is None else load_recipe(name, method)
    return TrainConfig(**{**recipe, **flags})


def _add_step_times(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--step-times",
        action="store_true",
        help="of several methods or seeds: afterwards also measure the time of a step of each "
        "method, by the ND loss's backend and by the reference",
    )


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="a .toml file of flags, a run's config.json, or one of those that come with ndfast: "
        f"{', '.join(recipe_names())} (default: the data set's, and digits without --data). "
        "The defaults below are those without a recipe.",
    )
