"""What the benchmark's options choose to time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="bench/ needs pytest-benchmark")

from bench import conftest, results
from bench.cases import LEFT_OUT, grid, has_autotune
from bench.conftest import OWN_SHAPES, SIZE


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as is needed to choose what to time; it has no backend but cuda."""
    machine = {"gpu": "Some GPU", "driver": "1.2", "torch": "9", "triton": "8"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(conftest, "environment", lambda device: machine)
    reasons = {"cuda": None, "triton": "not here"}
    monkeypatch.setattr(conftest, "why_not_timed", lambda backend, case: reasons[backend])


@dataclass(eq=False)
class Item:
    """Of pytest's, as much as is looked at."""

    name: str
    callspec: Any


@pytest.mark.usefixtures("a_gpu")
def test_what_is_missing(tmp_path: Path) -> None:
    done, autotuned, failing, old, new = grid("cuda", "quick")[:5]
    assert has_autotune(autotuned, "quick") != has_autotune(done, "quick")
    cases = {"done": done, "old": old, "autotuned": autotuned, "failing": failing, "new": new}
    machine = conftest.environment("cuda")
    rows = {
        name: {"case": str(case), "backend": "cuda", "others": {}, **machine}
        | dict.fromkeys(results.KEYS - {"case", "backend", "others", *machine})
        for name, case in cases.items()
    }
    rows["old"]["driver"] = "1.1"
    del rows["new"]
    for name in ("done", "autotuned"):
        rows[name]["others"]["autotune"] = {"why_not": LEFT_OUT}
    rows["failing"]["others"]["autotune"] = {"why_not": "RuntimeError: no memory"}
    results.save(results.path_of(tmp_path, "Some GPU"), "pytest", list(rows.values()))

    def chosen(size: str, **options: Any) -> list[str]:
        config: Any = SimpleNamespace(
            stash={SIZE: size, OWN_SHAPES: ([], torch.float32)},
            getoption={"missing": True, "results": tmp_path, **options}.get,
            hook=SimpleNamespace(pytest_deselected=lambda items: None),
        )
        items: list[Any] = [object()]  # of another test
        items += [
            Item(name, SimpleNamespace(params={"workload": case, "backend": backend}))
            for name, case in cases.items()
            for backend in ("cuda", "triton")
        ]
        conftest.pytest_collection_modifyitems(config, items)
        return [item.name for item in items[1:]]

    assert chosen("telling") == ["old", "new"]
    assert chosen("quick") == ["old", "autotuned", "new"]
    assert len(chosen("quick", missing=False)) == 2 * len(cases)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add": True}, "--add needs --results, whose file it adds to"),
        ({"missing": True}, "--missing needs --add, which keeps what it leaves out"),
        ({"telling": True, "full": True}, "--telling and --full: got both, expected one of them"),
        ({"shape": ["12"]}, "--shape: got '12', expected NxD or NxDxK"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    config: Any = SimpleNamespace(
        pluginmanager=SimpleNamespace(hasplugin=lambda name: True),
        getoption=options.get,
    )
    with pytest.raises(pytest.UsageError, match=message):
        conftest.pytest_configure(config)


@pytest.mark.parametrize("missing", [True, False])
def test_that_nothing_is_missing_is_no_error(missing: bool) -> None:
    session: Any = SimpleNamespace(config=SimpleNamespace(getoption={"missing": missing}.get))
    none = session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
    conftest.pytest_sessionfinish(session, none)
    assert session.exitstatus == (pytest.ExitCode.OK if missing else none)
