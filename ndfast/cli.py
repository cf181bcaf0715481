"""The command `ndfast`: env, class-means, teacher-outputs, train, compare, detect."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

import torch

import ndfast
from ndfast.dispatch import check_backend_name, named
from ndfast.environment import describe_environment
from ndfast.files import reason_of
from ndfast.train import commands
from ndfast.train.errors import CheckpointError, ConfigError, has_lost_another_process

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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal or a log may lack the ‖ of a table
    try:
        # An exit code, or None, or the sentence that it failed by.
        ended = given.command(given)
        return _fail(given, ended) if isinstance(ended, str) else ended or OK
    except ConfigError as error:
        # From a worker of a DataLoader it comes with a traceback before it.
        return _fail(given, str(error).rpartition("ConfigError: ")[2].strip(), MISUSED)
    except (CheckpointError, FloatingPointError) as error:
        return _fail(given, str(error))
    except RuntimeError as error:
        if not has_lost_another_process(error):
            raise
        return _fail(given, "another process ended before this one")
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        return _fail(given, f"{where}{reason_of(error)}")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        extra = "imagenet" if package in ("timm", "torchvision") else "train"
        return _fail(given, f'the package {package} is missing: pip install "ndfast[{extra}]"')
    except KeyboardInterrupt:
        return _fail(given, "interrupted")


def _fail(given: argparse.Namespace, message: str, code: int = FAILED) -> int:
    print(f"ndfast {given.name}: {message}", file=sys.stderr)
    return code


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ndfast", description=ndfast.__doc__)
    parser.add_argument("--version", action="version", version=f"ndfast {ndfast.__version__}")
    parsers = parser.add_subparsers(title="commands", required=True, dest="name", metavar="COMMAND")
    for name, add_arguments, run, purpose in (
        ("env", _add_env, _env, "what is installed, and which backends can run"),
        (
            "class-means",
            _add_class_means,
            _class_means,
            "show, convert or make a class-mean file",
        ),
        (
            "teacher-outputs",
            commands.add_teacher_outputs,
            commands.make_teacher_outputs,
            "run a teacher once, for all its students",
        ),
        (
            "train",
            commands.add_train,
            commands.train,
            "train a student, or students by several methods and seeds",
        ),
        (
            "compare",
            commands.add_compare,
            commands.compare,
            "train students by several methods and seeds, in pairs",
        ),
        (
            "detect",
            commands.add_detect,
            commands.detect,
            "train a detector by the ND loss on its box-head features",
        ),
    ):
        # No abbreviations: --seed 3 would be taken for --seeds 3.
        own = parsers.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        add_arguments(own)
        own.set_defaults(command=run)
    return parser


def _add_env(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def _env(given: argparse.Namespace) -> int:
    try:
        check_backend_name(named(None), "NDFAST_BACKEND")
    except ValueError as error:
        return _fail(given, str(error), MISUSED)
    environment = describe_environment()
    if given.json:
        print(json.dumps(environment, indent=1))
        return OK
    backends = environment.pop("backends")
    environment["backend"] = environment["backend"] or "the fastest that can run"
    for name, value in environment.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:<14} {shown or 'none'}")
    for name, reason in backends.items():
        print(f"{name:<14} {reason or 'can run'}")
    return OK


def _add_class_means(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, nargs="?", help="to show: .safetensors, .npz, or KD++'s .json"
    )
    parser.add_argument(
        "--to",
        type=Path,
        metavar="OTHER_FILE",
        help="write the means there too, in the format of its suffix",
    )
    commands.add_make_class_means(parser)


def _class_means(given: argparse.Namespace) -> int:
    if (given.file is None) == ("teacher" not in given):
        return _fail(given, "takes a file to show, or --teacher to make one", MISUSED)
    if given.file is None:
        commands.make_class_means(given)
        return OK
    if ignored := commands.flags_of_making(given):
        return _fail(given, f"{ignored[0]}: takes no file to show beside it", MISUSED)
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
        return _fail(given, f"cannot write {given.to}: {reason_of(error)}", MISUSED)
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
