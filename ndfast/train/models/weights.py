"""A network's weights in files, and the SHA-256 that tells one network's weights from another's."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ndfast.files import write_whole
from ndfast.train.errors import ConfigError

_PICKLES = (".pt", ".pth", ".bin", ".tar")
_NESTINGS = ("state_dict", "model_state", "model")
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
_STUDENT = "network."  # of a checkpoint of `ndfast.train.distiller`
_DIGEST = "weights_digest"
_SHOWN = 3


def whole(tensor: Tensor) -> Tensor:
    """A tensor without its gradient, put together where FSDP has spread it over the processes.

    Every process must call this.
    """
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each `whole` and on the CPU; every process must call this."""
    return {name: whole(tensor).cpu() for name, tensor in model.state_dict().items()}


def student_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The student's of a `ndfast.train.distiller`'s weights, by the network's own names."""
    return {
        name.removeprefix(_STUDENT): value
        for name, value in weights.items()
        if name.startswith(_STUDENT)
    }


def save_weights(model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Writes parameters and buffers as .safetensors, with their `weights_digest`.

    The file appears whole or not at all; one that was there stays as it is until then.

    Args:
        model: a network, or what `gather_weights` found of one.
        path: the file.

    Raises:
        OSError: it cannot be written, on a full disk for one.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _state(model).items()}
    data = safetensors.torch.save(state, metadata={_DIGEST: _digest(state)})
    write_whole(Path(path), data)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Reads a network's weights from a file, all of them or none.

    Taken are what `save_weights` wrote; a state dict in .safetensors; and one that `torch.save`
    wrote to .pt, .pth, .bin or .tar, under "state_dict", "model_state" or "model" too, where only
    tensors, plain values and an argparse.Namespace are unpickled. Names may begin with "module."
    (DistributedDataParallel) or "_orig_mod." (torch.compile), be those of a checkpoint of this
    harness, or those that the network knows as ``aliases``. A batch normalisation's
    "num_batches_tracked" may be missing.

    Args:
        model: gets the weights, in its own dtypes and on its own devices.
        path: the file.

    Raises:
        ConfigError: the file cannot be read or is damaged, or what it holds does not fit or is not
            finite; the model is as it was.
    """
    path = Path(path)
    wanted = model.state_dict()
    found = _rename(_read(path), wanted, getattr(model, "aliases", ()))
    wrong = [
        _listed("it lacks", (n for n in wanted if n not in found and not _is_counter(n))),
        _listed("it has besides", (name for name in found if name not in wanted)),
        _listed(
            "other shapes:",
            (
                f"{name} {_shape(found[name])} in place of {_shape(tensor)}"
                for name, tensor in wanted.items()
                if name in found and _shape(found[name]) != _shape(tensor)
            ),
        ),
    ]
    if any(wrong):
        raise ConfigError(f"{path}: does not fit the network: {'; '.join(filter(None, wrong))}")
    if broken := [name for name, value in found.items() if not value.isfinite().all()]:
        raise ConfigError(f"{path}: {_listed('NaN or Inf in', broken)}; it takes finite weights")
    model.load_state_dict(found, strict=False)  # a counter may be missing


def weights_digest(model: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of parameters and buffers, in order of names.

    The same on every device and in every memory format. A batch normalisation's
    "num_batches_tracked" is left out: it counts a training's steps, no output depends on it, and
    not every checkpoint has it.

    Args:
        model: a network, or what `gather_weights` found of one.

    Returns:
        64 hexadecimal digits.
    """
    return _digest(_state(model))


def _state(model: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return model.state_dict() if isinstance(model, nn.Module) else model


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if not _is_counter(name):
            values = tensor.detach().cpu()
            digest.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
            digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _read(path: Path) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix != ".safetensors" and suffix not in _PICKLES:
        raise ConfigError(f"{path}: weights are read from .safetensors, {', '.join(_PICKLES)}")
    try:
        open(path, "rb").close()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        if suffix == ".safetensors":
            return _read_safetensors(path)
        # Training scripts keep their arguments beside the weights; a Namespace runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # hostile bytes make parsers raise anything, OSError too
        raise ConfigError(
            f"{path}: cannot be read as weights: it is damaged, or holds objects besides tensors "
            "and plain values, which are not unpickled"
        ) from error
    for _ in _NESTINGS:  # a pickled dict may hold itself
        if isinstance(content, dict):
            inner = [content[key] for key in _NESTINGS if isinstance(content.get(key), dict)]
            content = inner[0] if inner else content
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__}; it takes a dict of tensors")
    return {str(name): value for name, value in content.items()}


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        digest = (file.metadata() or {}).get(_DIGEST)
    if digest is not None and digest != _digest(state):
        raise ConfigError(f"{path}: its SHA-256 does not fit: the file is damaged")
    return state


def _rename(
    found: dict[str, Any], wanted: Mapping[str, Tensor], aliases: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    found = {_WRAPPERS.sub("", name): value for name, value in found.items()}
    return {
        name if name in wanted else _alias(name, aliases): value
        for name, value in (student_weights(found) or found).items()
    }


def _alias(name: str, aliases: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in aliases:
        renamed, times = re.subn(pattern, replacement, name)
        if times:
            return renamed
    return name


def _shape(value: Any) -> Any:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _listed(what: str, items: Iterable[str]) -> str:
    items = list(items)
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{what} {', '.join(items[:_SHOWN])}{more}" if items else ""
