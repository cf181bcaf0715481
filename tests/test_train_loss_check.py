"""The ND loss that trains, beside the reference: 1 % off is refused, what is right is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate", reason="needs the extra [train]")

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from cases import needs_native
from small_runs import small_config

from ndfast import autograd, module
from ndfast.backends import native
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
Plant = Callable[[pytest.MonkeyPatch], None]


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


# Each makes something 1 % wrong.


def wrong_loss(patch: pytest.MonkeyPatch) -> None:
    right = native.forward

    def forward(*arguments: Any) -> Any:
        loss, *others = right(*arguments)
        return 1.01 * loss, *others

    patch.setattr(native, "forward", forward)


def wrong_gradient(patch: pytest.MonkeyPatch) -> None:
    right = native.forward

    def forward(*arguments: Any) -> Any:
        *others, gradient = right(*arguments)
        return *others, 1.01 * gradient

    patch.setattr(native, "forward", forward)


def wrong_gathered_row(patch: pytest.MonkeyPatch) -> None:
    """One of ten rows as the kernel reads it, by 1 % of its length."""
    right = native.forward

    def forward(student: Tensor, teacher: Tensor, means: Tensor, *others: Any) -> Any:
        return right(student, teacher, with_wrong_row(means), *others)

    patch.setattr(native, "forward", forward)


def with_wrong_row(means: Tensor) -> Tensor:
    wrong = means.detach().clone()
    off = torch.ones_like(wrong[3])
    off[::2] = -1
    wrong[3] += 0.01 * wrong[3].norm() / off.norm() * off
    return wrong


def wrong_kept_row(patch: pytest.MonkeyPatch) -> None:
    """In the module, where its direction stays, and with that the loss."""
    right = module.NDLoss.__init__

    def init(self: module.NDLoss, *arguments: Any, **options: Any) -> None:
        right(self, *arguments, **options)
        with torch.no_grad():
            self.class_means[3] *= 1.01

    patch.setattr(module.NDLoss, "__init__", init)


def wrong_weight(patch: pytest.MonkeyPatch) -> None:
    right = module.NDLoss.__init__

    def init(self: module.NDLoss, means: Tensor, weight: float, **options: Any) -> None:
        right(self, means, 1.01 * weight, **options)

    patch.setattr(module.NDLoss, "__init__", init)


def wrong_value_alone(patch: pytest.MonkeyPatch) -> None:
    right = module.nd_loss

    def nd_loss(*arguments: Any, **options: Any) -> Tensor:
        loss = right(*arguments, **options)
        return loss + 0.01 * loss.detach()

    patch.setattr(module, "nd_loss", nd_loss)


def wrong_gradient_alone(patch: pytest.MonkeyPatch) -> None:
    right = module.NDLoss.forward

    def forward(self: module.NDLoss, *arguments: Any) -> Tensor:
        loss = right(self, *arguments)
        return loss + 0.01 * (loss - loss.detach())

    patch.setattr(module.NDLoss, "forward", forward)


def wrong_hook(patch: pytest.MonkeyPatch) -> None:
    """On the features as the loss sees them."""
    right = module.nd_loss

    def nd_loss(student: Tensor, *arguments: Any, **options: Any) -> Tensor:
        student.register_hook(lambda gradient: 1.01 * gradient)
        return right(student, *arguments, **options)

    patch.setattr(module, "nd_loss", nd_loss)


def wrong_function(patch: pytest.MonkeyPatch) -> None:
    right = autograd._NDLoss.backward

    def backward(ctx: Any, *gradients: Tensor) -> Any:
        student, *others = right(ctx, *gradients)
        return 1.01 * student, *others

    patch.setattr(autograd._NDLoss, "backward", staticmethod(backward))


def wrong_finish(patch: pytest.MonkeyPatch) -> None:
    right = native.finish_gradient_

    def finish_gradient_(gradient: Tensor, *arguments: Any) -> None:
        right(gradient, *arguments)
        gradient.mul_(1.01)

    patch.setattr(native, "finish_gradient_", finish_gradient_)


def wrong_backward(patch: pytest.MonkeyPatch) -> None:
    right = native.backward
    patch.setattr(native, "backward", lambda *rows: tuple(1.01 * each for each in right(*rows)))


def no_gradient(patch: pytest.MonkeyPatch) -> None:
    right = module.NDLoss.forward
    patch.setattr(
        module.NDLoss, "forward", lambda self, s, *others: right(self, s.detach(), *others)
    )


def no_number(patch: pytest.MonkeyPatch) -> None:
    right = native.forward

    def forward(*arguments: Any) -> Any:
        *others, gradient = right(*arguments)
        gradient[1] = torch.nan
        return *others, gradient

    patch.setattr(native, "forward", forward)


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
