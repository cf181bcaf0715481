"""The command line: what it prints, and one sentence with the right exit code for bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ndfast
from ndfast import dispatch
from ndfast.cli import main


def run(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as stop:  # argparse's own way out
        return int(str(stop.code))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["nothing"], "'nothing'"),
        (["train", "--data", "cifar"], "data: got 'cifar'; expected digits, mnist1d"),
        (["train", "--data", "cifar100"], "data_dir: got none"),
        (["train", "--method", "kd+"], "--method: invalid choice: 'kd+'"),
        (["compare", "--methods"], "--methods: expected at least one argument"),
        (["train", "--backend", "metal"], "--backend: invalid choice: 'metal'"),
        (["train", "--epochs", "0"], "epochs: got 0; expected 1 or more"),
        (["train", "--epochs", "many"], "--epochs: invalid int value: 'many'"),
        (["compare", "--see", "3"], "--see"),  # no abbreviation of --seed or --seeds
        (["compare", "--seeds", "0"], "seeds: got 0; expected 1 or more"),
        (["train", "--seeds", "0"], "seeds: got 0; expected 1 or more"),
        (["train", "--method"], "--method: expected at least one argument"),
        (["train", "--method", "ce", "kd", "--probe"], "probe: is of a single run"),
        (["train", "--method", "ce", "kd", "--max-steps", "3"], "max_steps: is of a single run"),
        (["train", "--batch-size", "1"], "batch_size: got 1; expected 2 or more"),
        (["train", "--batch-size", "360"], "batch_size: got 360; expected at most 359"),
        (["train", "--batch-size", "90", "--accumulate", "4"], "expected at most 89"),
        (["train", "--lr", "0"], "lr: got 0.0; expected more than 0"),
        (["train", "--lr", "nan"], "lr: got nan"),
        (["train", "--model", "resnet21"], "model: got 'resnet21'"),
        (["train", "--teacher", "resnet21"], "got 'resnet21'"),
        (["train", "--teacher-weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["train", "--class-means", "nowhere.npz", "--epochs", "1"], "cannot read nowhere.npz"),
        (["train", "--out", __file__], "out: cannot write"),
        (["class-means", "--teacher", "convnet4"], "out: got none"),
        (["class-means", "--teacher", "convnet4", "--out", "a.npz", "--to", "b.npz"], "to: is for"),
        (["class-means", "x.npz", "--out", "a.npz"], "out: takes no file to show"),
        (["class-means", "x.npz", "--augmented"], "augmented: takes no file to show"),
        (["class-means", "x.npz", "--data", "digits"], "data: takes no file to show"),
        (["class-means", "x.npz", "--teacher", "convnet4"], "a file to show, or --teacher"),
        (["class-means"], "file"),
        (["class-means", "nowhere.json"], "cannot read nowhere.json"),
        (["class-means", __file__], "unknown suffix '.py'"),
    ],
)
def test_misuse_is_one_sentence_and_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    if {"train", "compare"} & set(arguments):
        pytest.importorskip("accelerate", reason="needs the extra [train]")
        if "--out" not in arguments:
            arguments = [*arguments, "--out", str(tmp_path)]
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("ndfast")
    assert said in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_the_help_names_no_default_of_what_must_be_given(capsys: pytest.CaptureFixture) -> None:
    assert run("train", "--help") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "(default: resnet56)" in told
    assert "the teacher is trained first" in told
    assert run("class-means", "--help") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "(default: resnet56)" not in told
    assert "trained first" not in told
    assert told.count("needed with --teacher") == 2


def test_unusable_backend_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="needs the extra [train]")

    def refuse(device: torch.device, name: str) -> None:
        raise RuntimeError(f"backend {name!r} cannot run: no reason")

    monkeypatch.setattr("ndfast.train.runs.run.choose", refuse)
    assert run("train", "--backend", "triton", "--out", str(tmp_path)) == 2
    assert "'triton' cannot run: no reason" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("rich", "train", "train --data digits"),
        ("sklearn", "train", "train --data digits"),
        ("mnist1d", "train", "train --data mnist1d"),
        ("timm", "imagenet", "train --data digits --teacher timm:resnet18"),
        ("torchvision", "imagenet", "train --data folder --data-dir ."),
        ("torchvision", "imagenet", "detect --model torchvision:x --dim 1024"),
    ],
)
def test_a_missing_package_is_one_sentence(
    package: str,
    extra: str,
    arguments: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
) -> None:
    pytest.importorskip("accelerate", reason="needs the extra [train]")
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert run(*arguments.split(), "--out", str(tmp_path / "run")) == 1
    error = capsys.readouterr().err
    assert f"the package {package}" in error
    assert f'pip install "ndfast[{extra}]"' in error
    assert error.count("\n") == 1


def test_a_package_that_is_needed_last_is_missed_first(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="needs the extra [train]")
    program = (
        "import sys; sys.modules |= {'scipy': None, 'pycocotools': None}\n"
        "from ndfast.cli import main\n"
        "for command in ('compare', 'detect'):\n"
        f"    assert main([command, '--epochs', '1', '--out', {str(tmp_path)!r}]) == 1"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for package, line in zip(("scipy", "pycocotools"), done.stderr.splitlines(), strict=True):
        assert f"the package {package} is missing" in line
    assert not any(tmp_path.iterdir())  # nothing was trained


def test_env_as_text_and_as_json(capsys: pytest.CaptureFixture) -> None:
    assert run("env", "--json") == 0
    environment = json.loads(capsys.readouterr().out)
    assert environment["torch"] == torch.__version__
    assert environment["backends"] == ndfast.available_backends()
    assert run("env") == 0
    text = capsys.readouterr().out
    for name in ("ndfast", "python", "torch", "triton", "numpy", "native", "reference"):
        assert f"\n{name}" in f"\n{text}"


def test_env_tells_the_backend_that_is_asked_for(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("env") == 0
    assert "the fastest that can run" in capsys.readouterr().out
    monkeypatch.setattr(dispatch, "_default", "reference")
    assert run("env") == 0
    assert re.search(r"^backend +reference$", capsys.readouterr().out, re.M)
    monkeypatch.setattr(dispatch, "_default", "metal")
    assert run("env") == 2
    assert "NDFAST_BACKEND: 'metal' is no backend" in capsys.readouterr().err


def test_class_means_shown_and_converted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    means = torch.tensor([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]])
    source, middle, end = (
        tmp_path / f"means{suffix}" for suffix in (".npz", ".safetensors", ".json")
    )
    ndfast.save_class_means(source, means, counts=[2, 3, 4], teacher="resnet56")
    assert run("class-means", str(source), "--to", str(middle)) == 0
    text = " ".join(capsys.readouterr().out.split())
    for said in (
        "K 3",
        "D 2",
        "1 to 5, mean 2.667",
        "2 to 4 a class, 9 in all",
        "teacher resnet56",
    ):
        assert said in text
    metadata = ndfast.load_class_means_metadata(middle)
    assert metadata["teacher"] == "resnet56"
    assert metadata["counts"].tolist() == [2, 3, 4]
    assert run("class-means", str(middle), "--to", str(end)) == 0
    assert "without teacher, counts" in capsys.readouterr().out
    for path in (source, middle, end):
        assert torch.equal(ndfast.load_class_means(path), means)


@pytest.mark.parametrize("target", ["means.txt", "nowhere/means.npz"])
def test_conversion_that_fails_is_one_sentence(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = tmp_path / "means.npz"
    ndfast.save_class_means(source, torch.ones(2, 3))
    assert run("class-means", str(source), "--to", str(tmp_path / target)) == 2
    error = capsys.readouterr().err
    assert target in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["means.npz"]


def test_the_version(capsys: pytest.CaptureFixture) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.split() == ["ndfast", ndfast.__version__]


def test_env_needs_no_package_of_the_harness() -> None:
    """Python 3.10 has no tomllib, and tomli comes with the extra [train]."""
    absent = "('tomllib', 'tomli', 'accelerate', 'rich')"
    program = f"import sys; sys.modules |= dict.fromkeys({absent}); from ndfast.cli import main; "
    program += "sys.exit(main(['env']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_m_ndfast_and_a_log_that_lacks_a_character(tmp_path: Path) -> None:
    file = tmp_path / "means.npz"
    ndfast.save_class_means(file, torch.ones(2, 3), teacher="‖ t ‖")
    command = [sys.executable, "-m", "ndfast", "class-means", str(file)]
    latin = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, env=latin, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert b"? t ?" in done.stdout
