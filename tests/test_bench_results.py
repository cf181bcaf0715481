"""The benchmark's figures: records, the results file, and the table and picture made of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_up_records import A_CASE, made_up_record

from bench import publish, report, results
from bench.cases import Case
from bench.conftest import EARLIER, RECORDS, TABLE_WIDTH, save_records


def test_a_record_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    r = made_up_record(A_CASE, "cuda", monkeypatch)
    assert r["case"] == "cuda-256x512-float32-fused-K1000"
    assert (r["N"], r["D"], r["K"], r["dtype"], r["means_dtype"]) == (
        256, 512, 1000, "float32", "float32",
    )  # fmt: skip
    assert r["bytes"] == 3 * 256 * 512 * 4
    expected = {
        "median_us": 4.0,
        "spread": 0.5,  # quartiles of 3, 4, 5 by statistics.quantiles: 3 and 5
        "eager_us": 60.0,
        "host_us": 40.0,
        "GB/s": 1_572_864 / 4e3,
        "ratio_to_roofline": 2.0,
        "ratio_to_compile": 0.5,  # of autotune, the fastest mode
        "ratio_to_eager": 0.1,
    }
    assert {name: r[name] for name in expected} == pytest.approx(expected)
    assert r["compile_mode"] == "autotune"
    assert r["ratio_to_loop"] is None
    kernels = {
        "forward": {"median_us": 3.0, "over_add_us": 1.0, "ratio_to_add": 1.5},
        "backward": {"median_us": 1.0, "over_add_us": -1.0, "ratio_to_add": 0.5},
    }
    for name, figures in kernels.items():
        assert r["kernels"][name] == pytest.approx(figures)
    assert r["others"]["compile"] == pytest.approx(
        {"median_us": 9.0, "ratio": 4 / 9, "eager_us": 200.0, "host_us": 120.0}
    )
    assert r["others"]["copy"]["GB/s"] == pytest.approx(1_048_576 / 1e3)
    assert r["others"]["autotune_graphs"] == {"why_not": "RuntimeError: no memory"}


def test_the_table_has_a_row_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    rich = pytest.importorskip("rich.console", reason="the table needs rich")
    rows = [made_up_record(A_CASE, backend, monkeypatch) for backend in ("cuda", "triton")]
    console = rich.Console(width=TABLE_WIDTH, force_terminal=False)
    with console.capture() as text:
        console.print(report.table(rows))
    lines = [line.split() for line in text.get().splitlines() if line.startswith(" Some GPU")]
    assert [line[5] for line in lines] == ["cuda", "triton"]
    # µs, spread, GB/s; roofline, cross entropy, compile, eager; then ratios
    assert lines[0][6:] == ["4", "50%", "393", "2", "–", "8", "40", "2", "–", "1.5", "2", "10"]


def test_the_table_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rich = pytest.importorskip("rich.console", reason="the table needs rich")
    case = Case("cuda", 65_536, 4096, torch.bfloat16, "attached", means_dtype=torch.bfloat16)
    r = made_up_record(case, "reference", monkeypatch) | {
        "gpu": "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    }
    for step in ("loop", "accumulate", "cross_entropy", "read_and_add", "eager"):
        r["others"][step] = {"median_us": 1_234_567.0}
        r[f"ratio_to_{step}"] = 1e-5
    r["ratio_to_roofline"] = 123_456.0
    console = rich.Console(width=TABLE_WIDTH, force_terminal=False)
    with console.capture() as text:
        console.print(report.table([r]))
    assert "…" not in text.get()


def test_results_are_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = results.path_of(tmp_path / "results", "NVIDIA H200 (MIG 1g.18gb)")
    assert path == tmp_path / "results" / "nvidia-h200-mig-1g-18gb.json"
    rows = [made_up_record(A_CASE, "cuda", monkeypatch)]
    results.save(path, "pytest bench/", rows)
    results.save(path, "pytest bench/ -m gpu", rows)
    assert results.load(path) == ("pytest bench/ -m gpu", rows)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="JSON compliant"):
        results.save(path, "pytest", [rows[0] | {"spread": float("nan")}])
    assert results.load(path) == ("pytest bench/ -m gpu", rows)


def test_a_benchmark_in_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(N: int, backend: str, median_us: float = 4.0, **versions: str) -> dict[str, Any]:
        case = Case("cuda", N, 512, torch.float32)
        return made_up_record(case, backend, monkeypatch) | versions | {"median_us": median_us}

    def run(arguments: list[str], *records: dict[str, Any], add: bool = False) -> None:
        options = {"results": tmp_path, "add": add}
        config: Any = SimpleNamespace(
            stash={RECORDS: [], EARLIER: {}},
            getoption=options.get,
            invocation_params=SimpleNamespace(args=arguments),
        )
        for one in records:  # as they are timed
            config.stash[RECORDS].append(one)
            save_records(config, "Some GPU")

    def found() -> tuple[str, list[tuple[int, str, float]]]:
        command, records = results.load(results.path_of(tmp_path, "Some GPU"))
        return command, [(r["N"], r["backend"], r["median_us"]) for r in records]

    run(["bench/"], timed(64, "cuda"), timed(256, "cuda"), timed(256, "triton"), add=True)
    run(["-k", "x"], timed(256, "cuda", 5.0), timed(512, "cuda"), add=True)
    first = [(64, "cuda", 4.0), (256, "triton", 4.0)]
    both = ("pytest bench/; pytest -k x", [*first, (256, "cuda", 5.0), (512, "cuda", 4.0)])
    assert found() == both
    # With another torch they are not to be compared; nor without --add.
    run(["-k", "y"], timed(64, "cuda", 3.0, torch="10"), add=True)
    assert found() == ("pytest -k y", [(64, "cuda", 3.0)])
    run(["-k", "z"], timed(64, "triton", torch="10"))
    assert found() == ("pytest -k z", [(64, "triton", 4.0)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "an object of a command and a list of records"),
        ('{"command": "x", "records": []}', "an object of a command and a list of records"),
        ('{"command": "x", "records": [3]}', "record 0 lacks .*GB/s"),
        ('{"command": "x", "records": [{"gpu": "y"}]}', "record 0 lacks .*way"),
    ],
)
def test_bad_results_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        results.load(path)
    assert str(caught.value).startswith(str(path))


PAGE = f"# Title\n\n{publish.START}\nold\n{publish.END}\n\nend\n"


def published(tmp_path: Path, *files: Path) -> str:
    """The PAGE once the command has run on ``files``."""
    page = tmp_path / "performance.md"
    page.write_text(PAGE)
    picture = tmp_path / "docs" / "roofline.png"
    publish.main([*map(str, files), "--page", str(page), "--picture", str(picture)])
    return page.read_text()


def test_without_results_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "ROOT", tmp_path)  # which has no results
    assert published(tmp_path) == PAGE.replace("old", "not measured")
    assert not (tmp_path / "docs").exists()


def test_results_become_table_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    attached = Case("cuda", 256, 512, torch.float32, "attached")
    not_quick = Case("cuda", 512, 64, torch.float32)
    pairs = [(attached, "cuda"), (not_quick, "cuda"), (A_CASE, "cuda"), (A_CASE, "triton")]
    rows = [made_up_record(case, backend, monkeypatch) for case, backend in pairs]
    path = tmp_path / "some-gpu.json"
    for r in rows:
        r["others"]["read_and_add"] = {"median_us": 4.0}
    results.save(path, "pytest bench/ -m gpu", rows)
    before, _, rest = published(tmp_path, path).partition(publish.START)
    body, _, after = rest.partition(publish.END)
    assert (before, after) == ("# Title\n\n", "\n\nend\n")
    assert "Some GPU; torch 9, Triton 8, driver 1.2; `pytest bench/ -m gpu`" in body
    assert "2 of the grid's 1,512 cases (`--full` times all)" in body
    assert "max-autotune took part in 2 cases" in body
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in body.splitlines()
        if line.startswith("| 256×512")
    ]
    figures = ["4", "393", "2", "2", "10", "–", "–", "60", "40", "3"]
    kernels = ["3", "1", "1.5", "1", "-1", "0.5"]
    assert cells[:3] == [
        ["256×512", "float32", "fused", "cuda", *figures],
        ["256×512", "float32", "fused", "triton", *figures],
        ["256×512", "float32", "attached", "cuda", "4", "655", "–", *figures[3:]],
    ]
    assert [row[4:] for row in cells[3:]] == [kernels] * 3
    assert (tmp_path / "docs" / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_every_series(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    from bench.picture import roofline_figure, series

    rows = [made_up_record(A_CASE, backend, monkeypatch) for backend in ("cuda", "triton")]
    num_bytes = 3 * 256 * 512 * 4
    assert series(rows) == {
        "cuda": [(num_bytes, pytest.approx(num_bytes / 4e3), "fused")],
        "triton": [(num_bytes, pytest.approx(num_bytes / 4e3), "fused")],
        "compile": [(num_bytes, pytest.approx(num_bytes / 8e3), "fused")],
        "eager": [(num_bytes, pytest.approx(num_bytes / 40e3), "fused")],
    }
    figure = roofline_figure([rows])
    (panel,) = figure.axes
    names = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"ndfast, cuda", "ndfast, triton", "eager", "way attached"} < names
    (legend,) = roofline_figure([rows[1:]]).legends
    assert names - {text.get_text() for text in legend.get_texts()} == {"ndfast, cuda"}
    assert panel.get_xscale() == "log"
    lines = {line.get_label(): line.get_xydata().tolist() for line in panel.get_lines()}
    assert lines["add"] == [[num_bytes, pytest.approx(num_bytes / 2e3)]]
    assert lines.keys() == {"add", "copy", "read"}
    assert len(panel.collections) == 4


@pytest.mark.parametrize(
    "text", ["no markers", publish.START, f"{publish.END}{publish.START}", PAGE + PAGE]
)
def test_a_page_without_its_markers_is_left_alone(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "performance.md"
    page.write_text(text)
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({}))
    with pytest.raises(SystemExit):
        publish.main([str(file), "--page", str(page)])
    assert "list of records" in capsys.readouterr().err
    with pytest.raises(ValueError, match="once each"):
        publish.between_markers(text, "body")
    assert page.read_text() == text
