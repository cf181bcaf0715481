"""Which of the tensors in a checkpoint are a network's weights, and what does not fit."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndfast.train.errors import ConfigError

# What a checkpoint calls the network itself, or what it wrapped it in, in the order of frameworks:
# RepDistiller, mdistiller, torchdistill, timm; KD++; Lightning; DistributedDataParallel;
# torch.compile; a run of this harness.
_USUAL = frozenset(
    (
        *("model", "state_dict", "model_state", "model_state_dict", "net", "network", "student"),
        *("weights", "params", "backbone", "module", "_orig_mod", "timm_model"),
    )
)
_AVERAGES = frozenset(("ema", "swa", "average", "averaged"))
_TEACHER = re.compile(r"teacher|^t_|_t$|^(t|tea)$", re.IGNORECASE)
_OPTIMISER = re.compile(r"optim(?!al|um)", re.IGNORECASE)
_SHOWN = 3
# A hostile file, of dicts in dicts or of names of dots, would else take memory by its square.
_MAX_DEPTH, _MAX_PREFIX = 16, 256


class _Candidate(NamedTuple):
    """Weights by the network's own names where they have one, and where in the checkpoint they are.

    ``twice`` has names that came to be one that was there already.
    """

    place: tuple[str, ...]
    weights: dict[str, Any]
    twice: list[str]


def find_weights(
    content: dict[Any, Any], wanted: Mapping[str, Tensor], aliases: Iterable[tuple[str, str]]
) -> dict[str, Tensor]:
    """A network's weights in a checkpoint: the dict in it, and the prefix there, that fit.

    That is: every name and shape is the network's, and nothing else has the same prefix. Where
    several fit and differ, a teacher gives way to what is beside it, as the student; then plain
    weights to their average (timm's "state_dict_ema"); then a place of any other name to the usual
    ones.

    Args:
        content: of the checkpoint; dicts in dicts.
        wanted: the network's state dict.
        aliases: see `ndfast.train.models.network.Network`.

    Returns:
        Tensors by the network's names; a counter of batch normalisation may be missing.

    Raises:
        ConfigError: none fits, or several; a sentence without the file's name.
    """
    aliases = tuple(aliases)
    needed = sum(not is_counter(name) for name in wanted)
    candidates = [
        _Candidate(place, *_rename(named, wanted, aliases))
        for place, named in _places(content, needed)
    ]
    fitting = [
        found
        for found in candidates
        if len(found.weights) >= needed and not _misfits(found, wanted)
    ]
    for is_worse in (_is_teacher, _is_plain, _is_unusual):
        better = [found for found in fitting if not is_worse(found.place)]
        fitting = better or fitting
    if not fitting:
        nearest = max(candidates, key=lambda found: _matches(found, wanted))
        raise ConfigError(f"does not fit the network: {'; '.join(_misfits(nearest, wanted))}")
    first, *others = fitting
    different = [found for found in others if not _same(found.weights, first.weights)]
    if different:
        places = " and ".join(".".join(found.place) or "the top" for found in (first, *different))
        raise ConfigError(
            f"holds several networks that fit, at {places}; expected one: torch.save its state "
            "dict alone"
        )
    return first.weights


def is_counter(name: str) -> bool:
    """Whether it counts a batch normalisation's steps, which no output depends on."""
    return name.endswith("num_batches_tracked")


def listed(what: str, items: Iterable[str]) -> str:
    """The first few items, and how many more there are; nothing where there are none."""
    items = list(items)
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{what} {', '.join(items[:_SHOWN])}{more}" if items else ""


def _places(
    content: dict[Any, Any], needed: int
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """What lies under each prefix in each dict of a checkpoint, its own first.

    Left out are those with too few names: of fewer than ``needed`` none fits, some are nearest.
    """
    for place, state in _dicts(content):
        yield place, state
        below: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, value in state.items():
            for dot in re.finditer(r"\.", name[:_MAX_PREFIX]):
                below[name[: dot.end()]][name[dot.end() :]] = value
        for prefix, found in below.items():
            if len(found) >= needed / 2 or len(found) == len(state):
                yield (*place, *prefix.split(".")[:-1]), found


def _dicts(content: dict[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """A checkpoint's dict and those in it, but for the optimiser's, which may be by names too."""
    seen = {id(content)}  # a pickled dict may hold itself
    waiting: list[tuple[tuple[str, ...], dict[Any, Any]]] = [((), content)]
    for place, state in waiting:
        # Attributes that a pickle gives to an OrderedDict or a Parameter would hide its methods.
        named = {
            str(name): Tensor.detach(value) if isinstance(value, Tensor) else value
            for name, value in dict.items(state)
        }
        yield place, named
        if len(place) == _MAX_DEPTH:
            continue
        for name, value in named.items():
            if isinstance(value, dict) and id(value) not in seen and not _OPTIMISER.search(name):
                seen.add(id(value))
                waiting.append(((*place, name), value))


def _rename(
    found: Mapping[str, Any], wanted: Mapping[str, Tensor], aliases: Iterable[tuple[str, str]]
) -> tuple[dict[str, Any], list[str]]:
    renamed: dict[str, Any] = {}
    twice = []
    for name, value in found.items():
        own = name if name in wanted else _alias(name, aliases)
        if own in renamed:
            twice.append(name)
        else:
            renamed[own] = value
    return renamed, twice


def _alias(name: str, aliases: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in aliases:
        renamed, times = re.subn(pattern, replacement, name)
        if times:
            return renamed
    return name


def _misfits(found: _Candidate, wanted: Mapping[str, Tensor]) -> list[str]:
    weights = found.weights
    surplus = [name for name in weights if name not in wanted]
    wrong = [
        listed("it lacks", (n for n in wanted if n not in weights and not is_counter(n))),
        listed("it has besides", [*surplus, *found.twice]),
        listed(
            "other shapes:",
            (
                f"{name} {_describe(weights[name], tensor)} in place of {list(tensor.shape)}"
                for name, tensor in wanted.items()
                if name in weights and not _fits(name, weights[name], tensor)
            ),
        ),
    ]
    return [sentence for sentence in wrong if sentence]


def _matches(found: _Candidate, wanted: Mapping[str, Tensor]) -> int:
    names = found.weights.keys() & wanted.keys()
    return 2 * len(names) + sum(_fits(name, found.weights[name], wanted[name]) for name in names)


def _fits(name: str, value: Any, tensor: Tensor) -> bool:
    return (
        _is_dense(value)
        and value.shape == tensor.shape
        # An average may have counters of fractions.
        and (is_counter(name) or _kind(value) == _kind(tensor))
    )


def _describe(value: Any, tensor: Tensor) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    if not _is_dense(value):
        return "without values" if value.is_meta else "that is sparse, nested or quantised"
    of = "" if _kind(value) == _kind(tensor) else f" of {value.dtype}"
    return f"{list(value.shape)}{of}"


def _is_dense(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_nested or value.is_quantized or value.is_meta)
    )


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _is_teacher(place: tuple[str, ...]) -> bool:
    return any(map(_TEACHER.search, place))


def _is_plain(place: tuple[str, ...]) -> bool:
    return not any(_AVERAGES & set(part.lower().split("_")) for part in place)


def _is_unusual(place: tuple[str, ...]) -> bool:
    return not all(part in _USUAL for part in place)


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(
        torch.equal(value, second[name]) for name, value in first.items() if not is_counter(name)
    )
