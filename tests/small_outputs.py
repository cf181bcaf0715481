"""A small teacher whose outputs are kept, for the tests of runs that read them.

As a program it is `ndfast` with a teacher that, where it runs in the steps, hands over what would
be kept: logits and norms, by the same function.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from ndfast.cli import main
from ndfast.train.distill import kept_outputs
from ndfast.train.distill.teacher import Teacher
from ndfast.train.models import Output, build_model
from ndfast.train.models.weights import save_weights

ROWS, K = 40, 4


class Kept(NamedTuple):
    """Images with 162 views, a teacher, and the folder of its outputs."""

    flags: dict[str, Any]
    weights: str
    folder: Path

    def config(self, **fields: Any) -> dict[str, Any]:
        """Fields of a run: of the data and the teacher, and ``fields``."""
        own = {
            "method": "kd++",
            "model": "convnet4",
            "epochs": 2,
            "batch_size": 8,
            "temperature": 4.0,
        }
        return {**self.flags, **own, "distill_warmup": 0, **fields}


def keep_outputs(folder: Path) -> Kept:
    """Images, a teacher and all its outputs, in a folder."""
    rng = np.random.default_rng(0)
    labels = np.arange(ROWS) % K
    # A class has a colour: there is something to learn.
    images = rng.integers(60, size=(ROWS, 3, 8, 8)) + 60 * labels[:, None, None, None]
    images = images.astype(np.uint8)
    file = folder / "images.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:12], y_test=labels[:12])
    torch.manual_seed(1)
    weights = str(folder / "teacher.safetensors")
    save_weights(build_model("convnet32", K, (3, 8, 8)), Path(weights))
    flags = {"data": f"npz:{file}", "teacher": "convnet32"}
    assert make(folder / "outputs", **flags, teacher_weights=weights) == 0
    return Kept(flags, weights, folder / "outputs")


def make(out: Path, *more: str, **flags: Any) -> int:
    """`ndfast teacher-outputs`; returns its exit status."""
    AcceleratorState._reset_state()  # one process has one precision otherwise
    return main(["teacher-outputs", *as_arguments(flags), "--out", str(out), *more])


def as_arguments(fields: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]


run_teacher = Teacher.__call__


def hand_over_norms(teacher: Teacher, images: Tensor) -> Output:
    """In place of `Teacher.__call__`."""
    return kept_outputs.as_output(*kept_outputs.logits_and_norms(run_teacher(teacher, images)))


if __name__ == "__main__":
    Teacher.__call__ = hand_over_norms  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
