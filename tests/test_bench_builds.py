"""Builds of the library timed against each other."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="bench/ needs pytest-benchmark")

from bench import builds, timing
from bench.cases import Case
from ndfast.backends import native

CASE = Case("cpu", 64, 32, torch.float32)


@dataclass(eq=False)
class MadeUp:
    """A build whose rounds are given, in µs of both steps; a text is an error."""

    name: str
    rounds: list[float | str]
    prepared: list[object] = field(default_factory=list)
    ended: bool = False

    def prepare(self, case: Case, seed: int) -> None:
        self.prepared.append((case, seed))

    def round(self) -> dict[str, float]:
        us = self.rounds.pop(0)
        if isinstance(us, str):
            raise RuntimeError(us)
        return {**dict.fromkeys(builds.STEPS, 1e-6 * us), "roofline": 2e-6}

    def end(self) -> None:
        self.ended = True


def test_ratios_are_taken_within_a_round(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "ROUNDS", 3)
    failing = MadeUp("failing", [1.0, "failing: a launch failed"])
    old, new = MadeUp("old", [4.0, 40.0, 8.0]), MadeUp("new", [2.0, 10.0, 8.0])
    assert builds.compare([failing, old, new], CASE, 5) == [old, new]
    assert (failing.ended, old.ended, new.ended) == (True, False, False)
    assert all(build.prepared == [(CASE, 5)] for build in (failing, old, new))
    title, said, *lines = capsys.readouterr().out.splitlines()
    assert title == "cpu-64x32-float32-fused-K1000, seed 5"
    assert said == "  failing: a launch failed"
    # Medians of 4, 40, 8 and 2, 10, 8; of 1/2, 1/4 and 1; of half of each.
    expected = ["old", "8", "1", "4"], ["new", "8", "0.5", "4"]
    assert [[line.split()[0], *figures_of(line)] for line in lines] == [*expected, *expected]


def figures_of(line: str) -> list[str]:
    return [word for word in line.split() if word.replace(".", "").isdigit()]


def test_steps_run_untimed_before_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 1.0, 1.02, 1.04, 1.06])
    monkeypatch.setattr(timing, "clock", lambda: next(now))
    calls: list[str] = []
    builds.settle([timing.Timed(partial(calls.append, name), calls=1) for name in "ab"])
    assert calls == [*"ababab"]  # until 0.05 s have passed


@pytest.mark.long
@pytest.mark.skipif(native.missing is not None, reason="needs the compiled library")
def test_each_build_is_loaded_in_the_place_of_the_installed_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "ROUNDS", 2)
    copies = [tmp_path / "one.so", tmp_path / "two.so"]
    for copy in copies:
        shutil.copy(native._C.__file__, copy)
    no_library = tmp_path / "three.so"
    no_library.write_text("no library")
    named = [f"{path.stem}={path}" for path in (*copies, no_library)]
    assert builds.main([*named, "--device", "cpu", "--shape", "64x32"]) == 1
    said = capfd.readouterr().out
    assert "  three: ImportError: " in said
    lines = [line.split()[0] for line in said.splitlines() if "roofline" in line]
    assert lines == ["one", "two", "one", "two"]
    assert builds.main([*named[:2], "--device", "cpu", "--shape", "64x32"]) == 0


def test_a_process_that_ends_or_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    build = builds.Build("it", Path("missing.so"))
    try:
        monkeypatch.setattr(builds, "SECONDS", 0.0)  # it has not even begun
        with pytest.raises(RuntimeError, match=r"^it: silent for 0 s$"):
            build.round()
    finally:
        build.end()
    with pytest.raises(RuntimeError, match=r"^it: its process ended, exit status -9$"):
        build.round()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["one"], "got 'one', expected NAME=LIBRARY, each name once, of a file"),
        (["one=missing.so"], "got 'one=missing.so', expected NAME=LIBRARY"),
        ([f"one={__file__}", f"one={__file__}"], "expected NAME=LIBRARY, each name once"),
        (
            [f"one={__file__}", "--device", "cuda"],
            "--device: got 'cuda', and PyTorch sees no CUDA GPU",
        ),
        ([f"one={__file__}", "--dtype", "float32"], "--dtype: got 'float32' without --shape"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        builds.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
