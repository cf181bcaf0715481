"""The ND loss that trains, beside the reference: 1 % off is refused, what is right is not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra [train]")

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from cases import needs_native
from small_runs import small_config
from wrong_losses import (
    Plant,
    no_gradient,
    no_number,
    wrong_backward,
    wrong_finish,
    wrong_function,
    wrong_gathered_row,
    wrong_gradient,
    wrong_gradient_alone,
    wrong_hook,
    wrong_kept_row,
    wrong_loss,
    wrong_value_alone,
    wrong_weight,
)

from ndfast.train.config.methods import METHODS
from ndfast.train.data import Data, build_data
from ndfast.train.distill.evaluation import take_class_means
from ndfast.train.distill.teacher import Teacher, freeze
from ndfast.train.engine.verdicts import summarise_checks
from ndfast.train.models import build_model
from ndfast.train.runs.run import build_trainer

pytestmark = needs_native

# A ResNet at a rate at which a rounding takes its training far away within some steps.
RESNET = {"data": "synthetic:96,10,3x8x8", "model": "resnet20", "teacher": "resnet8x4"}
RESNET |= {"batch_size": 16, "lr": 0.1, "milestones": (9,), "distill_warmup": 0}
SETS = {"digits": {}, "resnet": RESNET}
Set = tuple[dict[str, Any], Data, Teacher]


class Log:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(self, event: str, **values: Any) -> None:
        self.records.append({"event": event, **values})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the harness has it; small networks wait for a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sets() -> dict[str, Set]:
    """By name the fields of its config, the data and a teacher with its own class means."""
    AcceleratorState._reset_state()
    found = {}
    for name, fields in SETS.items():
        config = small_config(Path(name), **fields)
        torch.manual_seed(11)
        data = build_data(config.data)
        network = build_model(config.teacher, data.num_classes, data.image_shape)
        network = freeze(network, config, torch.device("cpu"))
        means, _ = take_class_means(
            Accelerator(cpu=True), network, data.train, data.num_classes, config
        )
        found[name] = fields, data, Teacher(network, means, {"norm": 1.0})
    return found


def check_steps(chosen: Set, steps: int, **fields: Any) -> dict[str, Any]:
    """What the check says of so many steps of a training."""
    of_set, data, teacher = chosen
    config = small_config(Path("none"), **{**of_set, "check_loss": True, "probe": True, **fields})
    trainer = build_trainer(config, Accelerator(cpu=True), data, teacher)
    trainer.log = log = Log()
    trainer.model.train()
    for batches in islice(trainer.steps_of_epoch(0), steps):
        trainer.step(batches)
    found = summarise_checks([record for record in log.records if record["event"] == "check"])
    assert found is not None
    assert found["steps"] == min(steps, 10)
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SETS)
def test_what_is_wrong_is_refused_in_every_method(
    name: str, method: str, sets: dict[str, Set], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = check_steps(sets[name], 2, method=method)
    assert right["agrees"]
    assert right["refused"] is None
    for plant in (wrong_loss, wrong_gradient, wrong_gathered_row):
        with monkeypatch.context() as patch:
            plant(patch)
            found = check_steps(sets[name], 1, method=method)
        assert not found["agrees"]
        of = "loss" if plant is wrong_loss else "gradient"
        assert 1e-3 < found["differences"][of] < 2e-2
        assert found["refused"]["difference"] > found["refused"]["tolerance"] == 1e-5


@pytest.mark.parametrize(
    ("plant", "fields", "of"),
    [
        (wrong_kept_row, {}, "class_means"),
        (wrong_kept_row, {"learnable_class_means": True}, "class_means"),
        (wrong_weight, {}, "loss"),
        (wrong_weight, {}, "gradient"),
        (wrong_value_alone, {}, "loss"),
        (wrong_gradient_alone, {}, "gradient"),
        (wrong_hook, {}, "gradient"),
        (wrong_function, {}, "gradient"),
        (wrong_finish, {"accumulate": 2}, "gradient"),
        (wrong_backward, {"learnable_class_means": True}, "class_means"),
        (wrong_gradient, {"accumulate": 2}, "gradient"),
        (wrong_gradient, {"precision": "bf16"}, "gradient"),
        (wrong_gathered_row, {"precision": "bf16"}, "gradient"),
        (wrong_gathered_row, {"mixup": 0.8}, "gradient"),
        (no_gradient, {}, "gradient"),
        (no_number, {}, "gradient"),
    ],
)
def test_wherever_it_is_wrong_it_is_refused(
    plant: Plant,
    fields: dict[str, Any],
    of: str,
    sets: dict[str, Set],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert check_steps(sets["digits"], 2, **fields)["agrees"]
    plant(monkeypatch)
    found = check_steps(sets["digits"], 2, **fields)
    assert not found["agrees"]
    assert found["differences"][of] > 2 * found["tolerances"][of]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SETS)
def test_what_is_right_is_not_refused(name: str, method: str, sets: dict[str, Set]) -> None:
    assert check_steps(sets[name], 10, method=method, batch_size=8)["agrees"]


@pytest.mark.parametrize(
    "fields",
    [
        {"precision": "bf16"},
        {"precision": "bf16", "learnable_class_means": True, "accumulate": 2, "batch_size": 8},
        {"learnable_class_means": True, "mixup": 0.8},
        {"mixup": 0.8, "cutmix": 1.0},
        {"accumulate": 3, "batch_size": 8, "nd_weight": 1e-6},
        {"nd_weight": 1e6, "clip_norm": 1.0},
        {"nd_warmup": 5},
        {"backend": "reference"},
        {"channels_last": True, "model": "resnet20", "batch_size": 8},
    ],
    ids=str,
)
def test_no_option_makes_what_is_right_refused(
    fields: dict[str, Any], sets: dict[str, Set]
) -> None:
    name = "resnet" if "model" in fields else "digits"
    found = check_steps(sets[name], 10, **fields)
    assert found["agrees"], found
    assert found["differences"]["loss"] > 0


@pytest.mark.parametrize("is_wrong", [False, True])
def test_a_compiled_student(
    is_wrong: bool, sets: dict[str, Set], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its graph alone, which is what the check cuts; Inductor's code takes a minute."""
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self: setattr(
            self, "_compiled_call_impl", torch.compile(self._call_impl, backend="aot_eager")
        ),
    )
    if is_wrong:
        wrong_gradient(monkeypatch)
        wrong_backward(monkeypatch)
    found = check_steps(sets["digits"], 2, compile=True)
    assert found["agrees"] is not is_wrong
    assert 0 < found["differences"]["gradient"] < 2e-2
