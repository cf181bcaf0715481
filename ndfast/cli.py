"""The command `ndfast`: env, class-means, train."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch

import ndfast
from ndfast.dispatch import BACKENDS
from ndfast.environment import describe_environment
from ndfast.train.config import DEFAULTS, ConfigError
from ndfast.train.losses import METHODS

OK, FAILED, MISUSED = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, where argparse would print the usage before it."""
        self.exit(MISUSED, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: of the command line, without the program's name; by default sys.argv's.

    Returns:
        The exit code: 0; 1 where the command failed; 2 where it was misused.
    """
    parser = _build_parser()
    given = parser.parse_args(arguments)
    try:
        return given.command(given)
    except ModuleNotFoundError as error:
        return _fail(given, f'the package {error.name} is missing: pip install "ndfast[train]"')
    except KeyboardInterrupt:
        return _fail(given, "interrupted")


def _fail(given: argparse.Namespace, message: str, code: int = FAILED) -> int:
    print(f"ndfast {given.name}: {message}", file=sys.stderr)
    return code


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ndfast", description=ndfast.__doc__)
    parser.add_argument("--version", action="version", version=f"ndfast {ndfast.__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, dest="name", metavar="COMMAND"
    )
    for name, add_arguments, purpose in (
        ("env", _add_env, "what is installed, and which backends can run"),
        ("class-means", _add_class_means, "show or convert a class-mean file"),
        ("train", _add_train, "train a teacher, distil students from it, compare the methods"),
    ):
        # No abbreviations: --seed 3 would be taken for --seeds 3.
        add_arguments(
            commands.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        )
    return parser


def _add_env(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(command=_env)


def _env(given: argparse.Namespace) -> int:
    environment = describe_environment()
    if given.json:
        print(json.dumps(environment, indent=1))
        return OK
    backends = environment.pop("backends")
    for name, value in environment.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:<10} {shown or 'none'}")
    for name, reason in backends.items():
        print(f"{name:<10} {reason or 'can run'}")
    return OK


def _add_class_means(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help=".safetensors, .npz, or KD++'s .json")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="OTHER_FILE",
        help="write the means there too, in the format of its suffix",
    )
    parser.set_defaults(command=_class_means)


def _class_means(given: argparse.Namespace) -> int:
    try:
        means = ndfast.load_class_means(given.file)
        metadata = ndfast.load_class_means_metadata(given.file)
    except OSError as error:
        return _fail(given, f"cannot read {given.file}: {error.strerror}", MISUSED)
    except ValueError as error:
        return _fail(given, str(error), MISUSED)
    counts = metadata.pop("counts", None)
    norms = means.norm(dim=1)
    print(f"classes K  {metadata.pop('num_classes')}")
    print(f"features D {metadata.pop('dim')}")
    print(f"norms      {norms.min():.4g} to {norms.max():.4g}, mean {norms.mean():.4g}")
    if counts is not None:
        print(f"rows       {counts.min()} to {counts.max()} a class, {counts.sum()} in all")
    for name, value in metadata.items():
        print(f"{name:<10} {value}")
    if given.to is None:
        return OK
    try:
        _convert(given.to, means, counts, metadata)
    except OSError as error:
        return _fail(given, f"cannot write {given.to}: {error.strerror}", MISUSED)
    except ValueError as error:
        return _fail(given, str(error), MISUSED)
    return OK


def _convert(
    path: Path, means: torch.Tensor, counts: torch.Tensor | None, metadata: dict[str, str]
) -> None:
    metadata.pop("sha256", None)  # of the file that was read
    if path.suffix.lower() == ".json":
        dropped = [*metadata, *(() if counts is None else ("counts",))]
        ndfast.save_class_means(path, means)
        lost = f", without {', '.join(dropped)}: KD++'s JSON has no room" if dropped else ""
        print(f"written to {path}{lost}")
        return
    ndfast.save_class_means(path, means, counts=counts, **metadata)
    print(f"written to {path}")


def _add_train(parser: argparse.ArgumentParser) -> None:
    def default(field: str) -> str:
        values = {name: getattr(config, field) for name, config in DEFAULTS.items()}
        if len(set(values.values())) == 1:
            return f"(default: {values['digits']})"
        shown = (f"{value} for {name}" for name, value in values.items())
        return f"(default: {', '.join(shown)})"

    what = parser.add_argument_group("what is trained")
    what.add_argument(
        "--data",
        choices=DEFAULTS,
        default="digits",
        help="images of 8×8 from scikit-learn, or signals of 40 samples (default: digits)",
    )
    what.add_argument(
        "--method",
        dest="methods",
        nargs="+",
        choices=METHODS,
        metavar="METHOD",
        help="ce: cross entropy; kd: and Hinton's distillation; kd++: and the ND loss "
        "(default: all)",
    )
    what.add_argument(
        "--seeds", type=int, metavar="N", help=f"students of each method {default('seeds')}"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help=f"of the teacher and of each student {default('epochs')}",
    )
    how.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"images a step and process {default('batch_size')}",
    )
    how.add_argument("--lr", type=float, help=f"learning rate at the start {default('lr')}")
    how.add_argument(
        "--backend",
        choices=("auto", *BACKENDS),
        help="what computes the ND loss (default: auto, the fastest that can run)",
    )
    parser.add_argument_group("output").add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where class_means.safetensors, results.json and curves.png go, replacing those of an "
        f"earlier run {default('out')}",
    )
    parser.epilog = (
        "Device and processes are what Hugging Face Accelerate finds: ACCELERATE_USE_CPU=true "
        "keeps to the CPU; torchrun or `accelerate launch -m ndfast train` starts several "
        "processes."
    )
    parser.set_defaults(command=_train)


def _train(given: argparse.Namespace) -> int:
    from rich.console import Console

    from ndfast.train.run import run

    fields = ("methods", "seeds", "epochs", "batch_size", "lr", "backend", "out")
    chosen = {name: getattr(given, name) for name in fields if getattr(given, name) is not None}
    if chosen.get("backend") == "auto":
        chosen["backend"] = None
    if "methods" in chosen:
        chosen["methods"] = tuple(dict.fromkeys(chosen["methods"]))
    try:
        results = run(replace(DEFAULTS[given.data], **chosen), Console())
    except ConfigError as error:
        return _fail(given, str(error), MISUSED)
    except FloatingPointError as error:
        return _fail(given, str(error))
    trajectories = results["trajectories"]
    if trajectories is not None and not trajectories["agrees"]:
        return _fail(given, "the fused loss and the reference disagree: see the table")
    return OK
