"""A network's weights in files, and the SHA-256 that tells one network's weights from another's."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor, nn

from ndfast.files import expand_home, write_whole
from ndfast.train.errors import ConfigError
from ndfast.train.models.checkpoint_files import read_checkpoint
from ndfast.train.models.fitting import find_weights, is_counter, listed

_DIGEST = "weights_digest"


def save_weights(model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Writes parameters and buffers as .safetensors, with their `weights_digest`.

    The file appears whole or not at all; one that was there stays as it is until then.

    Raises:
        OSError: it cannot be written, on a full disk for one.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _state(model).items()}
    data = safetensors.torch.save(state, metadata={_DIGEST: _digest(state)})
    write_whole(expand_home(path), data)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Reads a network's weights from a file, all of them or none.

    Taken are what `save_weights` wrote, a state dict in .safetensors, and what `torch.save` wrote,
    whatever the file's name; only tensors, plain values, NumPy scalars and arrays, and an
    argparse.Namespace are unpickled. The state dict may be in other dicts, as under "model" or
    "model_state_dict", and its names may have a prefix, as "module." or "student."; in what the
    training kept, that is found which fits the network, see `ndfast.train.models.fitting`. Names
    may be those that the network knows as ``aliases``. A batch normalisation's
    "num_batches_tracked" may be missing.

    Raises:
        ConfigError: the file cannot be read or is damaged; it holds something that is not
            unpickled, which is named; or what it holds does not fit, is not finite, or fits twice;
            the model is as it was.
    """
    path = expand_home(path)
    content, metadata = read_checkpoint(path)
    digest = metadata.get(_DIGEST)
    if digest is not None and digest != _digest(content):
        raise ConfigError(f"{path}: its SHA-256 does not fit: the file is damaged")
    wanted = model.state_dict()
    try:
        found = find_weights(content, wanted, getattr(model, "aliases", ()))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    found = {name: value.to(wanted[name].dtype) for name, value in found.items()}
    if broken := [name for name, value in found.items() if not value.isfinite().all()]:
        raise ConfigError(f"{path}: {listed('NaN or Inf in', broken)}; expected finite weights")
    model.load_state_dict(found, strict=False)  # a counter may be missing


def weights_digest(model: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of parameters and buffers, in order of names.

    The same on every device and in every memory format. A batch normalisation's
    "num_batches_tracked" is left out: it counts a training's steps, no output depends on it, and
    not every checkpoint has it.
    """
    return _digest(_state(model))


def _state(model: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return model.state_dict() if isinstance(model, nn.Module) else model


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if not is_counter(name):
            values = tensor.detach().cpu()
            digest.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
            digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
