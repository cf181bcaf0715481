"""The benchmark of the user's own shape: its options, and its words for hand-made times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_up_records import A_CASE, made_up_record

pytest.importorskip("pytest_benchmark", reason="bench/ needs pytest-benchmark")

from bench import conftest, memory, verdict
from bench.cases import Case
from bench.conftest import OWN_SHAPES, RECORDS, SIZE
from bench.shapes import own_cases, read_options
from bench.timing import Timed
from bench.verdict import Rule, amount, fit, paragraphs

RULE = Rule(t0_us=2.0, gb_s=10.0)  # 1,000,000 bytes take 102 µs
# As bench.memory.figures has them: a microsecond, and 1,000 GB/s.
MEMORY = {"adds": [[1e6, 2.0], [1e9, 1001.0]], "call_us": 1.5}


def collect(*options: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "pytest", "bench/", *options, "--collect-only", "-q"]
    program.append("--assert=plain")  # what is only listed is not compiled anew
    root = Path(conftest.__file__).parents[1]
    return subprocess.run(program, cwd=root, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has cases too")
def test_only_the_shapes_are_timed() -> None:
    done = collect(
        "--shape", "64x32", "--shape", "8x16x5", "--shape", "64x32", "--dtype", "bfloat16"
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.OK, done.stdout
    found = [line for line in done.stdout.splitlines() if "::" in line]
    cases = {line.split("[")[1].removesuffix("]").rpartition("-")[0] for line in found}
    assert cases == {"cpu-64x32-bfloat16-fused-K1000", "cpu-8x16-bfloat16-fused-K5"}
    assert len(found) == 2 * 4  # backends; no training step


@pytest.mark.parametrize(
    "text", ["12", "0x4", "4x0", "axb", "4x5x0", "4x5x6x7", "4 x 5", "", "-4x5"]
)
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(ValueError, match=f"--shape: got '{text}', expected NxD or NxDxK"):
        read_options([text], None, full=False, telling=False)


@pytest.mark.parametrize(
    ("shapes", "dtype", "full", "telling", "message"),
    [
        (None, "float16", False, False,
         "--dtype: got 'float16' without --shape, expected --shape beside it"),
        (["4x5"], "half", False, False,
         "--dtype: got 'half', expected one of float32, bfloat16, float16"),
        (["4x5"], None, True, False, "--shape and --full: got both, expected one of them"),
        (["4x5"], None, False, True, "--shape and --telling: got both, expected one of them"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(
    shapes: list[str] | None, dtype: str | None, full: bool, telling: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        read_options(shapes, dtype, full, telling)


def test_options_by_hand() -> None:
    assert read_options(None, None, full=True, telling=False) == ([], torch.float32)
    assert read_options(["4x5"], None, False, False) == ([(4, 5, 1000)], torch.float32)
    shapes, dtype = read_options(["4x5x6", "7x8", "4x5x6"], "float16", False, False)
    assert (shapes, dtype) == ([(4, 5, 6), (7, 8, 1000)], torch.float16)
    assert own_cases("cpu", shapes, dtype) == [
        Case("cpu", 4, 5, torch.float16, K=6),
        Case("cpu", 7, 8, torch.float16, K=1000),
    ]


@pytest.mark.parametrize("has_gpu", [True, False])
def test_a_shape_is_timed_where_there_is_a_device(
    has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    stash = {SIZE: "quick", OWN_SHAPES: ([(4, 5, 6)], torch.bfloat16)}
    config: Any = SimpleNamespace(stash=stash)
    found = [case for device in ("cpu", "cuda") for case in conftest.cases_of(config, device)]
    devices = ["cpu", "cuda"] if has_gpu else ["cpu"]
    assert found == [Case(device, 4, 5, torch.bfloat16, K=6) for device in devices]


def test_the_adds_of_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [3 * 2 * N * memory.FEATURES for N in memory.ROWS][-1] > 200_000_000  # past the caches
    monkeypatch.setattr(memory, "ROWS", (1, 3))
    monkeypatch.setattr(memory, "FEATURES", 8)
    found = memory.adds(Case("cpu", 99, 99, torch.bfloat16))
    assert [*found] == [3 * 8 * 2, 3 * 24 * 2]
    written = [timed.run()[0] for timed in found.values()]
    assert [(out.shape, out.dtype) for out in written] == [
        ((1, 8), torch.bfloat16), ((3, 8), torch.bfloat16),
    ]  # fmt: skip


def test_the_bare_call_is_forward_and_backward() -> None:
    loss, gradient = memory.bare_call(Case("cpu", 99, 99, torch.float16), "reference").run()
    assert loss.ndim == 0
    assert (gradient.shape, gradient.dtype) == ((8, 64), torch.float16)


def test_figures_are_medians_in_microseconds() -> None:
    adds = {48: Timed(lambda: None, 1, seconds=[1e-6, 9e-6, 2e-6])}
    call = Timed(lambda: None, 1, seconds=[3e-6, 4e-6, 50e-6])
    found = memory.figures(adds, call)
    assert found["adds"] == [[48, pytest.approx(2.0)]]
    assert found["call_us"] == pytest.approx(4.0)


def test_a_line_is_found_again() -> None:
    rule = fit(
        [(num_bytes, RULE.us(num_bytes)) for num_bytes in (12_000, 48_000, 10**8, 4 * 10**8)]
    )
    assert (rule.t0_us, rule.gb_s) == pytest.approx((2.0, 10.0))


def test_errors_weigh_by_their_time() -> None:
    """An error of 10 % of the largest, 10,000 times the smallest, leaves t0 what it is."""
    rule = fit([(1_000, 2.1), (2_000, 2.2), (10**8, 10_002.0), (2 * 10**8, 22_000.0)])
    assert rule.t0_us == pytest.approx(2.0, rel=0.01)
    assert 9.0 < rule.gb_s < 10.0


def test_t0_is_never_negative() -> None:
    assert fit([(1_000, 0.05), (10**6, 100.0)]).t0_us == 0


@pytest.mark.parametrize(
    ("us", "call_us", "words"),
    [
        (110.16, 5.0, "Normal: 1.08 times what memory needs for these bytes."),
        (51.0, 5.0,
         "Normal: 0.50 times what memory needs for these bytes, of which the caches keep a part."),
        (203.0, 5.0, "Normal: 1.99 times what memory needs for these bytes."),
        # Past twice 102 µs; twice 100 µs and the call's 80 are the limit.
        (204.1, 80.0,
         "Normal: 2.00 times what memory needs for these bytes, and the call itself takes 80 of "
         "the 204 µs."),
        (306.0, 1.0,
         "Slower than expected: 3.00 times what memory needs for these bytes, where up to 2 times "
         "are normal; see docs/performance.md."),
        (279.0, 80.0,
         "Normal: 2.74 times what memory needs for these bytes, and the call itself takes 80 of "
         "the 279 µs."),
        (281.0, 80.0,
         "Slower than expected: 2.75 times what memory needs for these bytes, where up to 2 times "
         "are normal; see docs/performance.md."),
        (150.0, 76.0,
         "This batch is small: most of the time is the call itself, which takes 76 µs where there "
         "is next to nothing to do."),
    ],
)  # fmt: skip
def test_the_words_of_a_verdict(us: float, call_us: float, words: str) -> None:
    assert verdict.verdict(us, call_us, 1_000_000, RULE) == words


def test_a_paragraph_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    r = made_up_record(A_CASE, "cuda", monkeypatch) | {"memory": MEMORY}
    assert paragraphs([r]) == [
        "Some GPU, 256×512, K = 1000, float32, cuda: 1.57 MB move in 4 µs in CUDA graphs (called "
        "one by one: 60 µs), 393 GB/s. torch.add of the same bytes takes 50% of that time. Memory "
        "needs 2.57 µs for them: 1 µs + bytes / (1,000 GB/s), by torch.add from 1 MB to 1 GB in "
        "the same run. Normal: 1.55 times what memory needs for these bytes."
    ]
    r |= {"gpu": None, "eager_us": None}
    assert paragraphs([r])[0].startswith(
        "CPU, 256×512, K = 1000, float32, cuda: 1.57 MB move in 4 µs, 393 GB/s. "
    )


def test_float16_reads_the_student_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    r = made_up_record(A_CASE, "cuda", monkeypatch) | {"memory": MEMORY, "median_us": 6.3}
    assert "Slower than expected: 2.45 times" in paragraphs([r])[0]
    assert "Normal: 2.45 times" in paragraphs([r | {"way": "deferred"}])[0]
    slow = paragraphs([r | {"way": "deferred", "median_us": 9.0}])[0]
    assert "Slower than expected: 3.50 times" in slow
    assert "where up to 2.67 times are normal" in slow


def test_the_reference_has_a_paragraph_where_nothing_else_ran(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast, plain = (
        made_up_record(A_CASE, backend, monkeypatch) | {"memory": MEMORY}
        for backend in ("cuda", "reference")
    )
    assert [", cuda: " in text for text in paragraphs([fast, plain])] == [True]
    assert [", reference: " in text for text in paragraphs([plain])] == [True]
    del fast["memory"]  # of the grid
    assert paragraphs([fast]) == []


def test_the_paragraphs_follow_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    r = made_up_record(A_CASE, "cuda", monkeypatch) | {"memory": MEMORY}
    written: list[str] = []
    reporter: Any = SimpleNamespace(write=written.append)
    config: Any = SimpleNamespace(stash={RECORDS: [r]})
    monkeypatch.setattr(conftest, "table_text", lambda records: "the table")
    conftest.pytest_terminal_summary(reporter, config)
    assert written[0] == "\nthe table"
    assert [" ".join(text.split()) for text in written[1:]] == paragraphs([r])


def test_amounts_by_hand() -> None:
    assert [amount(n) for n in (36, 1_000, 49_152, 18_874_368, 1_500_000_000)] == [
        "36 bytes", "1 kB", "49.2 kB", "18.9 MB", "1.5 GB",
    ]  # fmt: skip
