"""Recipes: files of `TrainConfig` fields in TOML, one for each experiment; or a run's config."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ndfast.files import expand_home
from ndfast.train.config.methods import METHODS
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.errors import ConfigError

FOLDER = Path(__file__).parent
_OF_ONE_RUN = ("out", "resume", "overwrite")
_TABLES = [name for name, method in METHODS.items() if not method.nd]


def recipe_names() -> list[str]:
    """The recipes that come with ndfast."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str, method: str | None = None) -> dict[str, Any]:
    """The fields that a recipe sets for a method.

    A table named after a method, without its ++, holds what that method takes besides or instead,
    with the ND loss and without.

    Args:
        name: one of `recipe_names`, or a path to a .toml file, or to the config.json in a run's
            folder, whose training is repeated; not where it was, nor by resuming it.
        method: in `ndfast.train.config.methods.METHODS`; by default the recipe's own, or kd++.

    Raises:
        ConfigError: there is none, it is not TOML or JSON, or it has a key that is no field of
            `TrainConfig` or a value that is not taken, for this method or another.
    """
    # Here, for `ndfast env` works without the extra [train] that tomli comes with.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    is_file = name.endswith((".toml", ".json"))
    path = expand_home(name) if is_file else FOLDER / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
        recipe = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(
            f"recipe: got {name!r}; expected a .toml file, a run's config.json or "
            f"{', '.join(recipe_names())}"
        ) from None
    except (OSError, ValueError) as error:  # of which the decoders' errors are
        raise ConfigError(f"recipe: {path} cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise ConfigError(f"recipe: {path} holds no flags")
    if path.suffix == ".json":
        recipe = {key: value for key, value in recipe.items() if key not in _OF_ONE_RUN}
    tables = {key: recipe.pop(key) for key in _TABLES if isinstance(recipe.get(key), dict)}
    recipe = _checked(recipe, f"recipe {name}")
    for key, table in tables.items():
        source = f"recipe {name}, [{key}]"
        tables[key] = _checked(table, source)
        if "method" in table:
            raise ConfigError(f"{source}: takes no method; that stands above the tables")
    method = method or recipe.get("method", "kd++")
    return recipe | tables.get(method.removesuffix("++"), {}) | {"method": method}


def _checked(values: dict[str, Any], source: str) -> dict[str, Any]:
    """The values as `TrainConfig` takes them; ConfigError for one that it does not."""
    names = [item.name for item in fields(TrainConfig)]
    for key in values:
        if key not in names:
            near = get_close_matches(key, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{source}: unknown key {key!r}{hint}")
    taken: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    try:
        TrainConfig(**taken)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    return taken
