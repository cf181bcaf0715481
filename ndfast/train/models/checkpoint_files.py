"""Checkpoints in files, told apart by their content and not by their names.

Nothing is unpickled that can run: `torch.load` builds tensors and plain values alone, and for what
training scripts keep beside the weights, NumPy's values and an argparse.Namespace, a stand-in takes
the place of the class and does nothing.
"""

from __future__ import annotations

import pickletools
import re
import stat
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open

from ndfast.train.errors import ConfigError
from ndfast.train.models.fitting import listed

_TAKEN = "tensors, plain values, NumPy scalars and arrays, and argparse.Namespace"
_START = 64
_MAX_HEADER = 100_000_001  # of safetensors; the first bytes of a pickle are a far larger number
_LEGACY_PICKLES = 5  # before the storages, in what torch.save wrote before its zip files
_OF_TENSORS = re.compile(  # what torch.load takes in any state dict
    r"torch\.\w+|torch\._utils\._rebuild_\w+|torch\.nn\.parameter\.Parameter"
    r"|collections\.(?:OrderedDict|Counter)|_codecs\.encode|builtins\.set"
)
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<")
_OTHER_PROTOCOL = "Unsupported operand"  # in torch.load's messages, as is what follows
_REFUSED = re.compile(r"\bGLOBAL (\S+) (?:was not|whose)")


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a .safetensors file or one of `torch.save` holds, on the CPU, whatever its name.

    Returns:
        The dict in it, and the strings that a .safetensors file has beside its tensors.

    Raises:
        ConfigError: it cannot be read, is damaged or no checkpoint, or holds something that is not
            unpickled; names the file and that.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not path.is_dir():  # a pipe would be waited for
            raise ConfigError(f"{path}: is no regular file; expected a checkpoint")
        with open(path, "rb") as file:
            start = file.read(_START)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if start.startswith(b"version https://git-lfs"):
        raise ConfigError(
            f"{path}: is a pointer of Git LFS; expected the weights, which `git lfs pull` fetches"
        )
    if _HTML.match(start):
        raise ConfigError(
            f"{path}: is a page of HTML or XML; expected a checkpoint: its download has failed"
        )
    try:
        # A .safetensors file's header, behind the header's length.
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < _MAX_HEADER:
            return _read_safetensors(path)
        return _read_pickle(path), {}
    except ConfigError:
        raise
    except _Refused as error:
        raise ConfigError(f"{path}: holds {error}; expected {_TAKEN}") from error
    except Exception as error:  # hostile bytes make parsers raise anything, OSError too
        if names := _refused_names(path, error):
            raise ConfigError(f"{path}: {listed('holds', names)}; expected {_TAKEN}") from error
        raise ConfigError(
            f"{path}: cannot be read as weights: it is damaged, or no checkpoint of torch.save or "
            f"safetensors ({_reason(start, error)})"
        ) from error


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def _read_pickle(path: Path) -> dict[str, Any]:
    if zipfile.is_zipfile(path):
        _check_zip(path)
    with open(path, "rb") as file, _stand_ins(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the protocol, which is an error then
        # Opened: of a path torch.load would heed the suffix.
        content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__}; expected a dict of tensors")
    return content


def _check_zip(path: Path) -> None:
    """torch.load itself compares no checksum: a flipped bit would be another weight."""
    with zipfile.ZipFile(path) as file:
        names = [Path(name).name for name in file.namelist()]
        if "constants.pkl" in names:
            raise ConfigError(f"{path}: is a TorchScript program; expected a state dict")
        if "data.pkl" not in names:
            raise ConfigError(f"{path}: is a zip file of something else; expected a checkpoint")
        # torch.serialization.set_crc32_options(False) writes zeros in their place.
        summed = any(member.CRC for member in file.infolist())
        if summed and (broken := file.testzip()) is not None:
            raise ValueError(f"the checksum of {broken} does not fit")


class _Refused(Exception):
    """Names what is not read."""


class PlainValue:
    """Takes the place of a value that no weight depends on."""

    def __init__(self, *parts: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class NumpyScalar(PlainValue):
    """numpy._core.multiarray.scalar(dtype, bytes)."""

    def __init__(self, dtype: Any, value: Any = b"") -> None:
        if not isinstance(value, (bytes, PlainValue)):
            raise _Refused("numpy._core.multiarray.scalar of an object")


class NumpyArray(PlainValue):
    """numpy._core.multiarray._reconstruct(...), whose state ends in bytes, or a list of objects."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or not isinstance(state[-1], (bytes, PlainValue)):
            raise _Refused("numpy._core.multiarray._reconstruct of objects")


_TYPES = {kind.__name__.rstrip("_") for kind in np.sctypeDict.values()}
_STAND_INS: dict[str, type[PlainValue]] = {
    "argparse.Namespace": PlainValue,
    "builtins.bytes": PlainValue,  # empty ones; torch.load makes others itself
    "numpy.dtype": PlainValue,
    "numpy.ndarray": PlainValue,
    # NumPy 1 and NumPy 2 have other names for the same.
    **{f"numpy.{name}{end}": PlainValue for name in _TYPES for end in ("", "_")},
    **{f"numpy.{core}.multiarray.scalar": NumpyScalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": NumpyArray for core in ("core", "_core")},
}


@contextmanager
def _stand_ins() -> Iterator[None]:
    """These alone are unpickled besides what torch.load allows by itself.

    What else the process has allowed is set aside: some of NumPy's own classes among these would
    not fit.
    """
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals([(put, name) for name, put in _STAND_INS.items()]):
            yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def _refused_names(path: Path, error: Exception) -> list[str]:
    """What a pickle asks for and torch.load does not give it.

    torch.load names the first itself, but for protocols above 2, which it does not read.
    """
    if found := _REFUSED.search(str(error)):
        module, _, name = found[1].rpartition(".")
        return [_today(module or "builtins", name)]
    if _OTHER_PROTOCOL not in str(error):
        return []
    names: list[str] = []
    with suppress(Exception):  # behind its pickles a file has bytes of other kinds
        names.extend(_globals(path))
    named = [name for name in names if not _OF_TENSORS.fullmatch(name) and name not in _STAND_INS]
    return list(dict.fromkeys(named))


def _globals(path: Path) -> Iterator[str]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(name) as member:
                yield from _globals_of_one(member)  # type: ignore[arg-type]
        return
    with open(path, "rb") as file:
        for _ in range(_LEGACY_PICKLES):
            yield from _globals_of_one(file)


def _globals_of_one(file: BinaryIO) -> Iterator[str]:
    strings: list[Any] = ["", ""]
    memo: dict[Any, Any] = {}
    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if name == "GLOBAL":
            yield _today(*str(argument).split(" ", 1))
        elif name == "STACK_GLOBAL":
            yield _today(str(strings[-2]), str(strings[-1]))
        elif "UNICODE" in name:
            strings.append(argument)
        elif name == "MEMOIZE":
            memo[len(memo)] = strings[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = strings[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            strings.append(memo.get(argument))


def _today(module: str, name: str) -> str:
    """The name in Python 3 of what is pickled by its name in Python 2."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _reason(start: bytes, error: Exception) -> str:
    """A library's own words, in a few; torch.load has pages of advice around them."""
    text = str(error)
    if not start:
        return "it is empty"
    if _OTHER_PROTOCOL in text:
        is_pickle = start.startswith((b"\x80", b"PK\x03\x04"))
        return "its pickle's protocol is not 2" if is_pickle else "it begins as neither does"
    line = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return (line.partition("WeightsUnpickler error: ")[2] or line).strip().partition(". ")[0]
