"""What a run leaves is enough to repeat it."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="needs the extra [train]")

from small_runs import quiet_run

from ndfast.cli import main
from ndfast.train.errors import ConfigError
from ndfast.train.recipes import load_recipe


def test_a_runs_config_repeats_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    command = ["train", "--epochs", "2", "--milestones", "1", "--method", "dist++", "--seed", "5"]
    command += ["--ema", "0.9", "--max-steps", "15"]
    assert main([*command, "--out", str(first)]) == 0
    told = capsys.readouterr().out
    assert "class means: " in told  # the pass that takes them has a bar
    recipe = ["train", "--recipe", str(first / "config.json"), "--out"]
    assert main([*recipe, str(again)]) == 0
    assert main([*recipe, str(other), "--seed", "6"]) == 0
    results = [json.loads((out / "results.json").read_text()) for out in (first, again, other)]
    assert results[0]["sha256"] == results[1]["sha256"] != results[2]["sha256"]
    assert results[0]["test"] == results[1]["test"]
    assert results[0]["config"] | {"out": str(again)} == results[1]["config"]


def test_a_run_that_resumed_or_replaced_another_is_repeated_anew(tmp_path: Path) -> None:
    for flag in ("overwrite", "resume"):
        quiet_run(tmp_path, method="ce", max_steps=1, **{flag: True})
        recipe = load_recipe(str(tmp_path / "config.json"), "kd")
        assert not {"out", "overwrite", "resume"} & recipe.keys()
        assert (recipe["method"], recipe["max_steps"]) == ("kd", 1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read"),
        ("[3]", "holds no flags"),
        ('{"hidden_size": 768}', "unknown key 'hidden_size'"),
        ('{"lr": null}', "lr: got None; expected a number"),
        (None, "a run's config.json"),
    ],
)
def test_another_json_is_one_sentence(text: str | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_recipe(str(path))
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_versions_are_kept(tmp_path: Path) -> None:
    packages = quiet_run(tmp_path, method="ce", max_steps=1)["environment"]["packages"]
    for name in ("accelerate", "mnist1d", "pytorch_optimizer", "safetensors", "scikit-learn"):
        assert packages[name] == version(name)
    for name in ("timm", "torchvision"):  # of the other extra
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = None
        assert packages.get(name) == installed
