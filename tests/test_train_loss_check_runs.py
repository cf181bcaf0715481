"""The check of the ND loss in whole runs: which steps, what is kept, and how a command ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("accelerate", reason="needs the extra [train]")

from accelerate import Accelerator
from cases import needs_native
from small_runs import events, quiet_run

import ndfast
from ndfast.cli import main
from ndfast.train.engine.loss_check import LossCheck
from ndfast.train.engine.verdicts import in_words, summarise_checks

WRONG_RANK = Path(__file__).with_name("wrong_rank.py")


def plant(patch: pytest.MonkeyPatch) -> None:
    """A gradient that is 1 % off."""
    right = ndfast.NDLoss.forward

    def wrong(self: ndfast.NDLoss, *arguments: Any) -> Tensor:
        loss = right(self, *arguments)
        return loss + 0.01 * (loss - loss.detach())

    patch.setattr(ndfast.NDLoss, "forward", wrong)


@pytest.mark.parametrize("fields", [{}, {"method": "reviewkd++", "accumulate": 2, "ema": 0.9}])
def test_a_training_is_the_same_to_the_bit(fields: dict[str, Any], tmp_path: Path) -> None:
    fields = {"epochs": 1, "log_every": 4, **fields}
    checked = quiet_run(tmp_path / "checked", check_loss=True, **fields)
    plain = quiet_run(tmp_path / "plain", **fields)
    assert checked["sha256"] == plain["sha256"]
    assert checked["loss_check"]["agrees"]
    assert plain["loss_check"] is None


def test_the_first_and_the_logged_steps_are_checked_after_a_resume_too(tmp_path: Path) -> None:
    fields = {"check_loss": True, "log_every": 4}
    unbroken = quiet_run(tmp_path / "unbroken", **fields)
    records = events(tmp_path / "unbroken", "check")
    assert [record["step"] for record in records] == [*range(1, 11), 12, 16, 20]
    assert [record["epoch"] for record in records] == [1] * 10 + [2] * 3
    for name, difference in unbroken["loss_check"]["differences"].items():
        assert difference == max(record["differences"][name] for record in records)
    quiet_run(tmp_path / "broken", max_steps=13, **fields)
    resumed = quiet_run(tmp_path / "broken", resume=True, **fields)
    assert resumed["loss_check"] == unbroken["loss_check"]


def test_the_first_steps_past_a_warm_up_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its first epoch the ND loss counts for nothing, and any gradient is right."""
    plant(monkeypatch)
    found = quiet_run(tmp_path, check_loss=True, nd_warmup=1, max_steps=12)["loss_check"]
    steps = [record["step"] for record in events(tmp_path, "check")]
    assert steps == [*range(1, 11), 12]
    assert (found["refused"]["step"], found["refused"]["quantity"]) == (12, "gradient")


def test_a_refusal_outlives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        quiet_run(tmp_path, check_loss=True, max_steps=3)
    found = quiet_run(tmp_path, check_loss=True, resume=True)["loss_check"]
    assert (found["steps"], found["agrees"]) == (10, False)
    assert found["refused"]["step"] == 1
    assert found["refused"]["quantity"] == "gradient"


def test_a_run_goes_on_with_the_means_of_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may give a teacher others."""
    quiet_run(tmp_path, check_loss=True, max_steps=3)
    right = ndfast.ClassMeans.compute
    monkeypatch.setattr(ndfast.ClassMeans, "compute", lambda *a, **k: 1.0001 * right(*a, **k))
    found = quiet_run(tmp_path, check_loss=True, resume=True)["loss_check"]
    assert (found["steps"], found["agrees"]) == (10, True)


def test_a_batch_of_nan_is_no_disagreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ndfast.train.distill.distiller import Distiller

    right, calls = Distiller._project, []

    def project(self: Distiller, features: Tensor) -> Tensor:
        calls.extend([None] * self.training)
        spoilt = torch.where(torch.arange(len(features))[:, None] == 1, torch.nan, 0)
        projected = right(self, features)
        return projected + spoilt if len(calls) == 3 and self.training else projected

    monkeypatch.setattr(Distiller, "_project", project)
    found = quiet_run(tmp_path, check_loss=True, epochs=1)
    assert found["skipped"] == 1
    assert (found["loss_check"]["steps"], found["loss_check"]["agrees"]) == (10, True)


@needs_native
def test_commands_end_with_what_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plant(monkeypatch)
    train = ["train", "--epochs", "1", "--max-steps", "2", "--out", str(tmp_path / "trained")]
    assert main([*train, "--check-loss"]) == 1
    sentence = "at step 1, the gradient of the features is off by "
    assert f"disagree: of kd++, {sentence}" in capsys.readouterr().err
    assert main([*train, "--overwrite"]) == 0  # nobody asked
    weights = tmp_path / "trained/teacher/model.safetensors"
    compare = ["compare", "--methods", "kd++", "--epochs", "1", "--seeds", "1"]
    compare += ["--teacher-weights", str(weights), "--out"]
    assert main([*compare, str(tmp_path / "compared")]) == 1
    assert f"disagree: of kd++ with seed 0, {sentence}" in capsys.readouterr().err
    results = json.loads((tmp_path / "compared/results.json").read_text(encoding="utf-8"))
    found = results["loss_checks"]["kd++"]
    assert not found["agrees"]
    assert 1e-3 < found["differences"]["gradient"] < 2e-2
    capsys.readouterr()
    assert main([*compare, str(tmp_path / "reference"), "--backend", "reference"]) == 0
    results = json.loads((tmp_path / "reference/results.json").read_text(encoding="utf-8"))
    assert results["loss_checks"] == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "kd", "--check-loss"], "check_loss: got it with kd, which has no ND loss"),
        (["--method", "kd++", "--step-times"], "step_times: got it for a single run"),
        (["--method", "kd", "kd++", "--check-loss"], "check_loss: is of a single run"),
    ],
)
def test_flags_that_do_not_fit(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["train", *arguments, "--out", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.long
def test_one_process_that_is_wrong_fails_all(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    train = ["train", "--check-loss", "--epochs", "1", "--max-steps", "3", "--out", str(tmp_path)]
    done = subprocess.run(
        [*launch, str(WRONG_RANK), *train],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "the gradient of the features is off by" in done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["loss_check"]
    assert (found["steps"], found["agrees"]) == (3, False)


def checked_by_hand(
    student: Tensor, teacher: Tensor, means: Tensor, got: Tensor, *, learnable: bool = False
) -> dict[str, Any]:
    """What the check says where ``got`` [N, D] arrives as the gradient of the mean's rows."""

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.class_means = nn.Parameter(means) if learnable else means
            self.eps, self.ignore_index = 1e-8, -100

        def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
            return (student * got).sum()

    given: Any = Given()
    check = LossCheck(given, means)
    check.begin(1.0)
    labels = torch.arange(len(student)) % len(means)
    exact = ndfast.nd_loss(student.double(), teacher.double(), means.double(), labels)
    given(student.requires_grad_(), teacher, labels).backward()
    check.end(exact.float())
    return check.answer(Accelerator(cpu=True))


def test_what_overflows_in_one_batch_hides_no_other() -> None:
    check = LossCheck(ndfast.NDLoss(MEANS), MEANS)
    for differences, tolerances in (([0, torch.inf, 0], [1, torch.inf, 1]), ([0, 3, 0], [1, 2, 1])):
        check._found.append(torch.tensor([differences, tolerances]))
    found = check.answer(Accelerator(cpu=True))
    assert (found["differences"]["gradient"], found["agrees"]) == (3, False)


# Of two rows and the means (1, 0) and (0, 1): where ‖s‖ < ‖t‖ the gradient is −c/m, else that and
# p/m³·s; and each row's half of it for the mean.
MEANS = torch.eye(2)


def test_a_tie_that_rounding_decides_may_go_either_way() -> None:
    student, teacher = torch.tensor([[3.0, 4.0], [1.0, 2.0]]), torch.tensor([[5.0, 0.0], [3, 4]])
    teachers = torch.tensor([[-0.2, 0.0], [0.0, -0.2]]) / 2
    students = teachers + torch.tensor([[3 / 125 * 3, 3 / 125 * 4], [0, 0]]) / 2
    for close in (0.999999, 1.0, 1.000001):
        rows = teacher * torch.tensor([[close], [1.0]])
        for got in (students, teachers):
            assert checked_by_hand(student, rows, MEANS, got)["agrees"]
            assert not checked_by_hand(student, rows, MEANS, 1.01 * got)["agrees"]
    apart = teacher * torch.tensor([[1.0001], [1.0]])
    assert not checked_by_hand(student, apart, MEANS, students)["agrees"]


def test_a_gradient_that_cancels_is_held_against_its_terms() -> None:
    # s along c, and the longer: −c/m + p/m³·s is 0, and what rounding leaves of it.
    student, teacher = torch.tensor([[4.0, 0.0], [0.0, 8.0]]), torch.ones(2, 2)
    assert checked_by_hand(student, teacher, MEANS, torch.full((2, 2), 1e-8))["agrees"]
    assert not checked_by_hand(student, teacher, MEANS, torch.full((2, 2), 1e-5))["agrees"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_that_are_not_finite(bad: float) -> None:
    student, teacher = torch.tensor([[1.0, bad], [1.0, 2.0]]), torch.tensor([[5.0, 0.0], [3, 4]])
    nan, good = [torch.nan] * 2, [0.0, -0.1]
    assert checked_by_hand(student, teacher, MEANS, torch.tensor([nan, good]))["agrees"]
    for wrong in ([nan, nan], [[0.0, 0.0], good], [nan, [0.0, -0.101]]):
        assert not checked_by_hand(student, teacher, MEANS, torch.tensor(wrong))["agrees"]


def test_features_of_zero() -> None:
    student, teacher = torch.zeros(2, 2), torch.tensor([[5.0, 0.0], [0.0, 0.0]])
    got = torch.tensor([[-0.1, 0.0], [0.0, -0.5e8]])
    assert checked_by_hand(student, teacher, MEANS, got)["agrees"]
    assert not checked_by_hand(student, teacher, MEANS, 1.01 * got)["agrees"]
    means = torch.tensor([[0.0, 0.0], [0.0, 1.0]])  # a class without a row
    got[0] = 0
    assert checked_by_hand(student, teacher, means, got)["agrees"]


def step(number: int, loss: float | None, gradient: float, allowed: float = 1e-5) -> dict[str, Any]:
    return {
        "step": number,
        "differences": {"loss": loss, "gradient": gradient, "class_means": 0.0},
        "tolerances": {"loss": 1e-5, "gradient": allowed, "class_means": 1e-5},
        "agrees": loss is not None and loss <= 1e-5 and gradient <= allowed,
    }


def test_what_the_checks_come_to_by_hand() -> None:
    assert summarise_checks([]) is None
    good = [step(1, 1e-7, 2e-6), step(2, 2e-7, 1e-3, 2e-3), step(3, 1e-8, 1e-3, 4e-3)]
    found = summarise_checks(good)
    assert found is not None
    assert (found["steps"], found["agrees"], found["refused"]) == (3, True, None)
    # The second step has used up half of its tolerance, the third a quarter.
    assert found["differences"] == {"loss": 2e-7, "gradient": 1e-3, "class_means": 0.0}
    assert found["tolerances"] == {"loss": 1e-5, "gradient": 2e-3, "class_means": 1e-5}
    bad = summarise_checks([*good, step(4, 2e-5, 2e-5), step(5, None, 0.0)])
    assert bad is not None
    assert not bad["agrees"]
    assert bad["differences"]["loss"] is None
    assert bad["refused"] == {
        "step": 4, "quantity": "loss", "difference": 2e-5, "tolerance": 1e-5
    }  # fmt: skip
    of_runs = summarise_checks([found | {"seed": 0}, bad | {"seed": 1}])
    assert of_runs is not None
    assert (of_runs["steps"], of_runs["agrees"]) == (8, False)
    assert of_runs["refused"] == bad["refused"] | {"seed": 1}
    assert in_words("kd++", of_runs["refused"]) == (
        "the ND loss and the reference disagree: of kd++ with seed 1, at step 4, the loss is off "
        "by 2.0e-05; expected at most 1.0e-05"
    )
