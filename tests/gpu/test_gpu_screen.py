"""The benchmark's table on the screen that ends `make gpu`."""

from __future__ import annotations

from pathlib import Path

import outcomes
import pytest
import screen
import torch
from made_up_records import A_CASE, made_up_record
from outcomes import Outcome

from bench import results
from bench.cases import Case

NAMES = ("build", "smoke", "rest")


def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    outcomes.begin(tmp_path, "Some GPU", anew=True)
    outcomes.keep(tmp_path, Outcome("smoke", "failed", 61.4, "2 failed in 60s", ("E   x", "y")))
    outcomes.keep(tmp_path, Outcome("build", "passed", 48.0, "built"))
    assert screen.show(tmp_path, tmp_path / "results", NAMES) == 0
    return capsys.readouterr().out.splitlines()


def test_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attached = Case("cuda", 16_384, 2048, torch.bfloat16, "attached")
    pairs = [(A_CASE, "cuda"), (A_CASE, "triton"), (attached, "triton")]
    rows = [made_up_record(case, backend, monkeypatch) for case, backend in pairs]
    rows[1]["median_us"] = 1234.5
    rows[2]["others"]["read_and_add"] = {"median_us": 4.0}
    path = results.path_of(tmp_path / "results", "Some GPU")
    results.save(path, "pytest", rows)
    text = shown(tmp_path, capsys)
    assert text[1:8] == [
        f"make gpu on Some GPU; {tmp_path}"[: screen.WIDTH],
        "",
        "build  passed     48 s  built",
        "smoke  failed     61 s  2 failed in 60s",
        "rest   not begun",
        "",
        "First that did not pass: smoke, failed",
    ]
    assert text[8:11] == ["E   x", "y", ""]
    assert text[11] == f"{path}; medians in µs"[: screen.WIDTH]
    # cuda and triton; add, compile's fastest mode, eager; cuda over roofline; host's.
    assert [line.split() for line in text[14:]] == [
        ["256×512", "float32", "fused", "4", "1,234", "2", "8", "40", "2", "40", "120"],
        ["16384×2048", "bfloat16", "attached", "–", "4", "2", "8", "40", "–", "–", "120"],
    ]
    assert len({len(line) for line in text[13:]}) == 1


def test_the_widest_fit_and_the_most_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    half = torch.bfloat16
    cases = [Case("cuda", N, 4096, half, means_dtype=half) for N in range(70_000, 70_020)]
    rows = [made_up_record(case, "cuda", monkeypatch) for case in cases]
    for r in rows:
        r |= {"median_us": 12_345.0, "host_us": 123_456.0, "ratio_to_roofline": 123.0}
        r["others"]["eager"]["median_us"] = 1_234_567.0
    results.save(results.path_of(tmp_path / "results", "Some GPU"), "pytest", rows)
    text = shown(tmp_path, capsys)
    table = text[-1 - screen.MOST_CASES : -1]
    assert text[-1] == "and 4 more"
    assert all(line.split()[0].endswith("×4096") for line in table)
    assert {line.split()[-1] for line in table} == {"120"}  # the last cell: nothing is cut off
    assert len(text) < 50


def test_without_figures_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results.path_of(tmp_path / "results", "Some GPU")
    assert shown(tmp_path, capsys)[-1] == f"{path}: no figures"[: screen.WIDTH]


def test_without_anything_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert screen.show(tmp_path, tmp_path, NAMES) == 1
    assert "outcomes.jsonl: cannot be read" in capsys.readouterr().err
