"""One training: its losses, its steps, its evaluation, its class means."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("accelerate", reason="needs the extra [train]")

from accelerate import Accelerator
from small_networks import Linear, small_teacher
from small_runs import events, quiet_run, small_config, teacher_weights

from ndfast.train.config.train_config import TrainConfig
from ndfast.train.data import Data, build_data
from ndfast.train.data.batches import Batch
from ndfast.train.distill.distiller import Distiller
from ndfast.train.distill.evaluation import evaluate, take_class_means
from ndfast.train.engine.finite import FiniteCheck
from ndfast.train.engine.position import Position
from ndfast.train.engine.stopwatch import Stopwatch
from ndfast.train.engine.trainer import Trainer
from ndfast.train.runs.run import build_trainer


class Rows:
    """Rows and labels as they are given."""

    def __init__(self, rows: Tensor, labels: Tensor) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.rows[batch.indices], self.labels[batch.indices]


def toy_trainer(out: Path, train: Rows, **fields: Any) -> Trainer:
    config = small_config(out, method="ce", momentum=0.0, weight_decay=0.0, **fields)
    data = Data(train, train, 3, (4,), "toy")
    torch.manual_seed(3)
    return Trainer(Accelerator(cpu=True), config, data, Distiller(Linear(4, 5, 3), config), None)


def toy_rows(count: int = 24) -> Rows:
    torch.manual_seed(5)
    return Rows(torch.randn(count, 4), torch.randint(3, (count,)))


def parameters(trainer: Trainer) -> Tensor:
    return nn.utils.parameters_to_vector(trainer.model.parameters()).detach()


def test_accumulated_batches_make_the_step_of_the_whole(tmp_path: Path) -> None:
    whole = toy_trainer(tmp_path, toy_rows(), batch_size=8)
    parts = toy_trainer(tmp_path, toy_rows(), batch_size=2, accumulate=4)
    assert torch.equal(parameters(whole), parameters(parts))
    before = parameters(whole)
    for trainer in (whole, parts):
        trainer.step(next(trainer.steps_of_epoch(0)))
    assert not torch.equal(parameters(whole), before)
    torch.testing.assert_close(parameters(parts), parameters(whole))


def test_a_step_by_hand(tmp_path: Path) -> None:
    rows = Rows(torch.randn(2, 4), torch.tensor([0, 2]))
    trainer = toy_trainer(tmp_path, rows, batch_size=2, lr=0.5, schedule="cosine", clip_norm=0.25)
    loss = F.cross_entropy(trainer.model(rows.rows)["logits"], rows.labels)
    grads = torch.autograd.grad(loss, list(trainer.model.parameters()))
    gradient = torch.cat([grad.flatten() for grad in grads])
    assert gradient.norm() > 0.25
    before = parameters(trainer)
    trainer.step(next(trainer.steps_of_epoch(0)))
    expected = before - 0.5 * 0.25 * gradient / (gradient.norm() + 1e-6)
    torch.testing.assert_close(parameters(trainer), expected)


@pytest.mark.parametrize(
    ("warmup", "factors"), [(0, [1, 1, 1]), (1, [0, 1, 1]), (4, [0, 0.25, 0.5])]
)
def test_the_total_of_the_losses_grows_by_epoch(
    warmup: int, factors: list[float], tmp_path: Path
) -> None:
    data = build_data("digits")
    fields: dict[str, Any] = {"distill_warmup": warmup, "nd_warmup": 2 * warmup, "epochs": 3}
    fields |= {"ce_weight": 0.5, "distill_weight": 3.0, "nd_weight": 1.5}
    config = small_config(tmp_path, **fields)
    trainer = build_trainer(config, Accelerator(cpu=True), data, small_teacher(dim=24))
    images, labels = data.train.__getitems__(Batch(list(range(8)), None))
    for epoch, factor in enumerate(factors):
        trainer.position.epoch = epoch
        total, parts = trainer.losses((images, labels), 0)
        nd_factor = min(1, epoch / (2 * warmup)) if warmup else 1
        expected = 0.5 * parts["ce"] + 3 * factor * parts["distillation"]
        expected = expected + 1.5 * nd_factor * parts["nd"]
        torch.testing.assert_close(total.detach(), expected)


def test_the_data_seed_alone_decides_the_views(tmp_path: Path) -> None:
    def views(seed: int, data_seed: int | None, batch_size: int) -> dict[int, int]:
        fields = {"seed": seed, "data_seed": data_seed, "batch_size": batch_size}
        batches = list(toy_trainer(tmp_path, toy_rows(), **fields).batches)
        assert [row for batch in batches for row in batch.indices] != [*range(24)]
        return {
            row: view
            for batch in batches
            for row, view in zip(batch.indices, batch.views or (), strict=True)
        }

    assert views(0, 4, 8) == views(1, 4, 6) == views(4, None, 2)
    assert views(1, 4, 8) != views(1, None, 8)


def test_the_average_of_the_weights_by_hand(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, toy_rows(), batch_size=8, ema=0.75)
    seen = []
    for batches in trainer.steps_of_epoch(0):
        trainer.step(batches)
        seen.append(parameters(trainer))
    expected = seen[0]  # the first step is taken as it is
    for after in seen[1:]:
        expected = 0.75 * expected + 0.25 * after
    average = nn.utils.parameters_to_vector(trainer.average.module.parameters())
    torch.testing.assert_close(average, expected)


def test_the_sums_of_an_epoch_stay_float64() -> None:
    position, accelerator = Position("toy", 1), Accelerator(cpu=True)
    for loss in (0.1, 1e3, 1e-4):
        position.count([{"loss": torch.tensor(loss)}])
    expected = float(position.sums["loss"])
    for _ in range(2):  # as a checkpoint and the epoch's end do
        position.settle(accelerator)
        assert position.sums == {"loss": expected}


def test_evaluate_by_hand() -> None:
    # Features of norms 5 and 2, of cosines 3/5 and -1; the first row is classified right.
    rows = torch.tensor([[3.0, 4.0, math.log(3), 0.0], [0.0, -2.0, 0.0, 0.0]])
    dataset = Rows(rows, torch.tensor([0, 1]))
    class_means = torch.tensor([[7.0, 0.0], [0.0, 0.5]])

    def model(images: Tensor) -> dict[str, Tensor]:
        return {"features": images[:, :2], "logits": images[:, 2:]}

    found = evaluate(Accelerator(cpu=True), model, dataset, TrainConfig(), class_means)
    expected = {
        "accuracy": 0.5,
        "cross_entropy": (-math.log(0.75) - math.log(0.5)) / 2,
        "norm": 3.5,
        "cosine": (0.6 - 1.0) / 2,
    }
    assert found == pytest.approx(expected, rel=1e-6)
    without = evaluate(Accelerator(cpu=True), model, dataset, TrainConfig(), None)
    assert without == pytest.approx({k: v for k, v in expected.items() if k != "cosine"}, rel=1e-6)


def test_class_means_are_those_of_every_row() -> None:
    torch.manual_seed(1)
    dataset = Rows(torch.randn(301, 4), torch.arange(301) % 3)  # more than a batch
    network = Linear(4, 5, 3).eval()
    means, counts = take_class_means(Accelerator(cpu=True), network, dataset, 3, TrainConfig())
    features = network(dataset.rows).features
    for label in range(3):
        torch.testing.assert_close(means[label], features[dataset.labels == label].mean(dim=0))
    assert counts.tolist() == [101, 100, 100]


def test_the_finite_check_forgets_what_it_was_asked() -> None:
    check = FiniteCheck(Accelerator(cpu=True))
    check.watch(torch.tensor(1.0))
    check.watch(torch.tensor(float("inf")))
    assert not check.all_finite()
    check.watch(torch.tensor(1.0))
    assert check.all_finite()


def test_finite_gradients_however_large() -> None:
    check = FiniteCheck(Accelerator(cpu=True))
    weight = nn.Parameter(torch.zeros(3))
    for gradient, finite in ((3e38, True), (float("nan"), False), (-float("inf"), False)):
        weight.grad = torch.tensor([3e38, gradient, 3e38])
        check.clip_and_watch([weight])
        assert check.all_finite() == finite


def test_the_stopwatch_adds_up_a_steps_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ndfast.train.engine.stopwatch.perf_counter", lambda: now[0])
    watch = Stopwatch(torch.device("cpu"))
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + 0.25))
    watch.watch("layer", layer)
    for seconds in (1.0, 3.0, 2.0):
        watch.start_step()
        for _ in range(2):
            with watch.part("forward"):
                layer(torch.zeros(2))
                now[0] += seconds
        watch.end_step()
    assert watch.medians_ms() == {"forward": 4500.0, "layer": 500.0}
    assert watch.seconds_per_step() == 4.5
    assert watch.seconds_per_step() == 0.0


def test_a_seed_decides_the_student(tmp_path: Path) -> None:
    fields = {"class_means": "classifier", "epochs": 1}
    fields["teacher_weights"] = teacher_weights(tmp_path / "teacher")
    first, again, other = (
        quiet_run(tmp_path / name, seed=seed, log_every=1, **fields)
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first["sha256"] == again["sha256"] != other["sha256"]
    losses = [
        [step["loss"] for step in events(tmp_path / name, "step")] for name in ("first", "again")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 11


def test_a_probe_changes_nothing_but_what_is_measured(tmp_path: Path) -> None:
    weights = teacher_weights(tmp_path / "teacher")
    fields = {"method": "kd", "epochs": 1, "teacher_weights": weights}
    probed = quiet_run(tmp_path / "probed", probe=True, **fields)
    # Its dropout draws random numbers, but the student has none of its own.
    alone = quiet_run(tmp_path / "alone", **fields)
    assert probed["test"]["accuracy"] == alone["test"]["accuracy"]
    assert probed["test"]["cross_entropy"] == pytest.approx(
        alone["test"]["cross_entropy"], rel=1e-6
    )
    assert "cosine" in probed["test"]
    assert "cosine" not in alone["test"]
    # Nothing looked at class means, and so no pass over the training set took them.
    assert not (tmp_path / "alone" / "class_means.safetensors").exists()


@pytest.mark.long
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    script = tmp_path / "toy.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path[:0] = {[str(Path(__file__).parent)]!r}\n"
        "from pathlib import Path\n"
        "from ndfast.train.machine.processes import shut_down\n"
        "from test_train_loop import parameters, toy_rows, toy_trainer\n"
        "trainer = toy_trainer(Path(sys.argv[1]), toy_rows(23), batch_size=4, epochs=2)\n"
        "trainer.train(trainer.log, trainer.bar, lambda epoch_ends: None)\n"
        "if trainer.accelerator.is_main_process:\n"
        "    torch.save((parameters(trainer), trainer.evaluate()[0]), sys.argv[2])\n"
        "else:\n"
        "    trainer.evaluate()\n"
        "accelerator = trainer.accelerator\n"
        "del trainer\n"
        "shut_down(accelerator)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path), str(tmp_path / "found.pt")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    together, metrics = torch.load(tmp_path / "found.pt", weights_only=True)
    alone = toy_trainer(tmp_path, toy_rows(23), batch_size=8, epochs=2)
    alone.train(alone.log, alone.bar, lambda epoch_ends: None)
    torch.testing.assert_close(together, parameters(alone))
    assert metrics == pytest.approx(alone.evaluate()[0], rel=1e-5)


def test_compiled_in_nhwc_and_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_(module: nn.Module) -> None:
        compiled.append(type(module).__name__)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_)  # Inductor would take a minute
    weights = teacher_weights(tmp_path / "teacher")
    fields = {"teacher_weights": weights, "log_every": 1, "max_steps": 3}
    plain = quiet_run(tmp_path / "plain", **fields)
    special = quiet_run(
        tmp_path / "special", **fields, compile=True, channels_last=True, precision="bf16"
    )
    assert compiled == ["Network", "Distiller"]
    assert special["environment"]["precision"] == "bf16"
    for ours, theirs in zip(
        events(tmp_path / "special", "step"), events(tmp_path / "plain", "step"), strict=True
    ):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)
    assert plain["sha256"] != special["sha256"]
