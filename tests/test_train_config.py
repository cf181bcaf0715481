"""The config of a run: recipes, flags over them, and a sentence for what is not taken."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from ndfast.cli import main
from ndfast.train.commands import add_train, read_config
from ndfast.train.config.same_run import check_same_run
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.engine.optimizers import learning_rate
from ndfast.train.errors import ConfigError
from ndfast.train.recipes import load_recipe


def parse(*arguments: str) -> TrainConfig:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_train(parser)
    return read_config(parser.parse_args(arguments))


def test_flags_go_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('data = "mnist1d"\nlr = 0.5\nmilestones = [3, 5]\nema = 0.9\n')
    config = parse("--recipe", str(recipe), "--lr", "0.25", "--no-nesterov")
    assert (config.data, config.lr, config.milestones, config.ema) == ("mnist1d", 0.25, (3, 5), 0.9)
    assert not config.nesterov
    rest = {"data", "lr", "milestones", "ema", "nesterov", "out"}
    defaults = TrainConfig()
    for item in fields(TrainConfig):
        if item.name not in rest:
            assert getattr(config, item.name) == getattr(defaults, item.name)


@pytest.mark.parametrize(
    ("arguments", "data", "lr"),
    [
        ((), "digits", 0.05),
        (("--data", "mnist1d"), "mnist1d", 0.02),
        (("--data", "cifar100"), "cifar100", 0.1),  # no recipe of that name: the defaults
        (("--data", "digits", "--recipe", "mnist1d"), "digits", 0.02),
    ],
)
def test_the_recipe_is_the_data_sets(arguments: tuple[str, ...], data: str, lr: float) -> None:
    config = parse(*arguments)
    assert (config.data, config.lr) == (data, lr)


def test_every_field_is_a_flag() -> None:
    given = []
    expected: dict[str, Any] = {}
    for item in fields(TrainConfig):
        kind = str(item.type).removesuffix(" | None")
        flag = f"--{item.name.replace('_', '-')}"
        if kind == "bool":
            expected[item.name] = not item.default
            given.append(f"--{'no-' if item.default else ''}{flag[2:]}")
        elif kind.startswith("tuple"):
            expected[item.name] = (7, 9)
            given += [flag, "7", "9"]
        else:
            choices = item.metadata["choices"]
            expected[item.name] = {
                "str": choices[-1] if choices else "other",
                "int": 17,
                "float": 0.375,
            }[kind]
            given += [flag, str(expected[item.name])]
    # Not together with --resume, and with --mixup.
    given.remove("--overwrite")
    expected["overwrite"] = False
    place = given.index("--teacher-outputs")
    del given[place : place + 2]
    expected["teacher_outputs"] = None
    given[given.index("--method") + 1] = expected["method"] = "dist++"  # takes mixup
    assert asdict(parse(*given)) == expected


@pytest.mark.parametrize(
    ("fields_", "sentence"),
    [
        ({"method": "kd+"}, "method: got 'kd+'; expected ce, kd"),
        ({"epochs": 0}, "epochs: got 0; expected 1 or more"),
        ({"epochs": 2.5}, "epochs: got 2.5; expected an integer"),
        ({"epochs": True}, "epochs: got True; expected an integer"),
        ({"batch_size": 1}, "batch_size: got 1; expected 2 or more"),
        ({"lr": float("nan")}, "lr: got nan; expected a finite number"),
        ({"lr": 0}, "lr: got 0; expected more than 0"),
        ({"lr": "0.1"}, "lr: got '0.1'; expected a number"),
        ({"data": 3}, "data: got 3; expected a string"),
        ({"nesterov": 1}, "nesterov: got 1; expected true or false"),
        ({"milestones": (3, 0)}, "milestones: got (3, 0); expected integers above 0"),
        ({"seed": 2**32}, "seed: got 4294967296; expected less than 4294967296"),
        ({"label_smoothing": 1.0}, "label_smoothing: got 1.0; expected less than 1"),
        ({"nd_weight": 0.0}, "nd_weight: got 0.0; expected more than 0"),
        ({"resume": True, "overwrite": True}, "resume: got it together with overwrite"),
        ({"method": "dkd++", "mixup": 0.2}, "mixup and cutmix: dkd++ takes neither"),
        ({"backend": "fast"}, "backend: got 'fast'; expected "),
    ],
)
def test_a_value_that_is_not_taken(fields_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TrainConfig(**fields_)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epoch = 3\n", "unknown key 'epoch'; did you mean epochs?"),
        ("zzz = 3\n", "unknown key 'zzz'"),
        ("epochs = \n", "cannot be read"),
        ("lr = 1\nlr = 2\n", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        ('lr = "fast"\n', "recipe.toml: lr: got 'fast'; expected a number"),
        ('[dkd]\ndkd_beta = "x"\n', "recipe.toml, [dkd]: dkd_beta: got 'x'; expected a number"),
        ("[dist]\nmilestones = [0]\n", "[dist]: milestones: got (0,); expected integers above 0"),
        ("[reviewkd]\nnd_weight = -1\n", "[reviewkd]: nd_weight: got -1; expected more than 0"),
        ('[kd]\nmethod = "dkd++"\n', "[kd]: takes no method; that stands above the tables"),
        (None, "expected a .toml file, a run's config.json or "),
    ],
)
def test_a_wrong_recipe_is_one_sentence(
    text: str | bytes | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "recipe.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    command = ["train", "--recipe", str(path), "--lr", "0.1", "--out", str(tmp_path / "run")]
    assert main(command) == 2  # what a flag overrides is looked at too
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_recipes_of_the_small_sets_name_what_they_say() -> None:
    for name in ("digits", "mnist1d"):
        assert load_recipe(name)["data"] == name


@pytest.mark.parametrize(
    ("change", "named"),
    [({"lr": 0.2}, "lr"), ({"method": "kd"}, "method"), ({"milestones": (1, 2)}, "milestones")],
)
def test_another_training_is_not_resumed(change: dict[str, Any], named: str) -> None:
    before = asdict(TrainConfig())
    before["milestones"] = list(before["milestones"])  # as JSON gives it back
    check_same_run(TrainConfig(), before)
    check_same_run(replace(TrainConfig(), workers=3, checkpoint_every=5, resume=True), before)
    with pytest.raises(ConfigError, match=f"^{named}: .* a resumed run takes the same$"):
        check_same_run(replace(TrainConfig(), **change), before)


def test_a_run_of_before_channels_last_was_the_default_names_its_flag() -> None:
    before = asdict(TrainConfig(channels_last=False))
    check_same_run(TrainConfig(channels_last=False), before)
    said = "^channels_last: got None, .* a resumed run takes the same, --no-channels-last$"
    with pytest.raises(ConfigError, match=said):
        check_same_run(TrainConfig(), before)


def test_learning_rate_by_hand() -> None:
    steps = TrainConfig(lr=0.8, milestones=(2, 3), lr_gamma=0.5, lr_warmup=1, epochs=5)
    # Four steps an epoch: the warm-up's, then epochs 1, 2 and 3 at 1, 1/2 and 1/4.
    found = [learning_rate(steps, step, 4) for step in range(16)]
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8] + [0.8] * 4 + [0.4] * 4 + [0.2] * 4)
    cosine = TrainConfig(lr=0.8, schedule="cosine", lr_warmup=1, epochs=3)
    # Eight steps of the cosine after a warm-up of four: 0, 1/4, 1/2, 3/4 of the half turn.
    found = [learning_rate(cosine, step, 4) for step in (3, 4, 6, 8, 10, 12)]
    assert found == pytest.approx([0.8, 0.8, 0.4 * (1 + 0.5**0.5), 0.4, 0.4 * (1 - 0.5**0.5), 0.0])


def test_a_methods_table_goes_over_the_recipe_and_the_flags_over_both(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("nd_weight = 5.0\nlr = 0.5\n[dkd]\nnd_weight = 3.0\ndkd_beta = 2.0\n")
    flags = ("--recipe", str(recipe))
    assert parse(*flags).nd_weight == 5
    for method in ("dkd", "dkd++"):
        config = parse(*flags, "--method", method)
        assert (config.method, config.nd_weight, config.dkd_beta, config.lr) == (method, 3, 2, 0.5)
    assert parse(*flags, "--method", "dkd++", "--nd-weight", "4").nd_weight == 4
    recipe.write_text('method = "dkd"\n[dkd]\ndkd_beta = 2.0\n')
    assert (parse(*flags).method, parse(*flags).dkd_beta) == ("dkd", 2)
    assert (parse(*flags, "--method", "kd").method, parse(*flags, "--method", "kd").dkd_beta) == (
        "kd",
        8,
    )
    recipe.write_text("[dkd]\nbeta = 2.0\n")
    with pytest.raises(ConfigError, match="unknown key 'beta'"):
        parse(*flags)
    recipe.write_text('["dkd++"]\nnd_weight = 2.0\n')
    with pytest.raises(ConfigError, match=r"unknown key 'dkd\+\+'"):
        parse(*flags)
