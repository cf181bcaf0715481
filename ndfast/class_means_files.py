"""Class means in files: KD++'s JSON, .npz and .safetensors. Nothing is ever unpickled.

KD++'s JSON is `ndfast.class_dict`'s dict with exactly the keys 0 to K-1, in any order, and nothing
else: a flipped digit in it is another number. The other two hold the array "class_means" [K, D] and
a dict of strings: what `save_class_means` was given, K, D, and the SHA-256 of the array and those
strings together. There no flipped bit passes unseen.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import reprlib
import stat
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from ndfast.class_dict import check_finite, stack_class_dict
from ndfast.files import expand_home, write_whole

MAX_BYTES = 1 << 30
_OWN = ("num_classes", "dim", "sha256")
_PICKLES = frozenset((".pt", ".pth", ".pkl", ".pickle", ".ckpt"))


def save_class_means(
    path: str | os.PathLike[str],
    means: Tensor,
    *,
    counts: Tensor | np.ndarray | Sequence[int] | None = None,
    **metadata: str,
) -> None:
    """Writes class means in the format of the path's suffix: .json (KD++'s), .npz or .safetensors.

    The file appears whole or not at all; one that was there stays as it is until then.

    Args:
        path: where to; ``~`` is the home folder.
        means: [K, D], finite. float64 is kept in .npz and .safetensors; float16 and bfloat16 are
            written as float32.
        counts: how many rows each mean is of, [K] integers.
        **metadata: strings to keep beside the means, such as ``teacher="resnet56"``. KD++'s JSON
            has no room for them, nor for ``counts``.

    Raises:
        TypeError: an argument has a type or dtype that is not taken.
        ValueError: the suffix is none of the three, the means are not [K, D] or not finite, the
            counts do not fit, or .json is given counts or metadata.

    Examples:
        >>> ndfast.save_class_means("means.safetensors", means, teacher="resnet56")
    """
    path = expand_home(path)
    encode = _format_of(path).encode
    array = _to_array(means)
    write_whole(path, encode(array, _to_strings(metadata, counts, len(array))))


def load_class_means(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Tensor:
    """Reads class means: KD++'s JSON, or what `save_class_means` wrote to .npz or .safetensors.

    Args:
        path: the file, whose suffix tells the format; ``~`` is the home folder.
        max_bytes: a file larger than this, packed or unpacked, is refused; 1 GiB by default.

    Returns:
        [K, D] on the CPU; float32, or float64 where that was saved.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the suffix is unknown, it is no regular file, too large or damaged, or its
            content is not D finite numbers for exactly the classes 0 to K-1; names the file and
            what is wrong.
    """
    array, _ = _read(expand_home(path), max_bytes)
    with torch.inference_mode(False):  # the loss will save them
        return torch.from_numpy(array)


def load_class_means_metadata(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """Reads what stands beside the means in a file, after all the checks of `load_class_means`.

    Args:
        path: the file, whose suffix tells the format; ``~`` is the home folder.
        max_bytes: a file larger than this, packed or unpacked, is refused; 1 GiB by default.

    Returns:
        "num_classes" and "dim", ints; "counts", int64 [K], where they were saved; "sha256", but for
        .json; and the strings that `save_class_means` was given.

    Raises:
        OSError: as `load_class_means`.
        ValueError: as `load_class_means`.
    """
    _, metadata = _read(expand_home(path), max_bytes)
    return metadata


class _Format(NamedTuple):
    encode: Callable[[np.ndarray, dict[str, str]], bytes]
    decode: Callable[[bytes, int], tuple[np.ndarray, dict[str, Any]]]


def _encode_json(array: np.ndarray, metadata: dict[str, str]) -> bytes:
    if metadata:
        raise ValueError(
            f"{', '.join(metadata)}: KD++'s JSON has no room for metadata; save to .npz or "
            ".safetensors, or leave it out"
        )
    check_finite("means", array, range(len(array)), np.float32)
    # tolist() widens to float64, whose decimals give every reader the same float32 back.
    return json.dumps({str(k): values for k, values in enumerate(array.tolist())}).encode()


def _decode_json(data: bytes, max_bytes: int) -> tuple[np.ndarray, dict[str, Any]]:
    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise ValueError(f"key {reprlib.repr(key)} occurs twice")
            content[key] = value
        return content

    # parse_int: an integer of 400 digits becomes Infinity, which is then refused by its place.
    content = json.loads(data, object_pairs_hook=unique_keys, parse_int=float)
    if not isinstance(content, dict):
        raise ValueError(f"content: got {type(content).__name__}; expected a dict of classes")
    classes, means = stack_class_dict("content", content)
    missing = set(range(len(classes))).difference(classes)
    if missing:
        raise ValueError(
            f"content: got {len(classes)} classes up to {max(classes)} without {min(missing)}; "
            "expected exactly 0 to K-1"
        )
    return means[np.argsort(classes)], _shape_of(means)


def _encode_npz(array: np.ndarray, metadata: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    sealed = json.dumps(_seal(array, metadata))
    np.savez(stream, class_means=array, metadata=np.array(sealed))
    return stream.getvalue()


def _decode_npz(data: bytes, max_bytes: int) -> tuple[np.ndarray, dict[str, Any]]:
    unpacked = sum(member.file_size for member in zipfile.ZipFile(io.BytesIO(data)).infolist())
    if unpacked > max_bytes:
        raise ValueError(f"it unpacks to {unpacked} bytes, more than max_bytes={max_bytes}")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        sealed = archive["metadata"].item() if "metadata" in archive else "{}"
        return _unseal(archive, json.loads(sealed))


def _encode_safetensors(array: np.ndarray, metadata: dict[str, str]) -> bytes:
    return safetensors.numpy.save({"class_means": array}, metadata=_seal(array, metadata))


def _decode_safetensors(data: bytes, max_bytes: int) -> tuple[np.ndarray, dict[str, Any]]:
    arrays = safetensors.numpy.load(data)
    # The library gives metadata of a path only; the header's length is in the first 8 bytes.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return _unseal(arrays, header.get("__metadata__", {}))


_FORMATS = {
    ".json": _Format(_encode_json, _decode_json),
    ".npz": _Format(_encode_npz, _decode_npz),
    ".safetensors": _Format(_encode_safetensors, _decode_safetensors),
}


def _format_of(path: Path) -> _Format:
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise ValueError(
            f"{path}: a {suffix} file is a pickle, which can run code when read; load it with "
            "torch.load(path, weights_only=True) and give the tensor to ndfast.save_class_means"
        )
    if suffix not in _FORMATS:
        raise ValueError(f"{path}: unknown suffix {suffix!r}; expected {', '.join(_FORMATS)}")
    return _FORMATS[suffix]


def _shape_of(array: np.ndarray) -> dict[str, int]:
    return {"num_classes": array.shape[0], "dim": array.shape[1]}


def _digest(array: np.ndarray, strings: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(strings, sort_keys=True).encode())
    digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _seal(array: np.ndarray, metadata: dict[str, str]) -> dict[str, str]:
    """The strings that a file holds beside the array."""
    strings = metadata | {name: str(size) for name, size in _shape_of(array).items()}
    return strings | {"sha256": _digest(array, strings)}


def _unseal(
    arrays: Mapping[str, np.ndarray], strings: dict[str, str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Checks what a file held; the numbers among its strings come back as numbers."""
    if "class_means" not in arrays:
        held = reprlib.repr(list(arrays)) if arrays else "nothing"
        raise ValueError(f"it holds no array class_means, but {held}")
    array = arrays["class_means"]
    if not isinstance(array, np.ndarray):  # a zip's file that is none, NumPy gives as bytes
        raise ValueError("class_means: is no array")
    if array.ndim != 2 or array.size == 0 or array.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"class_means: got {array.dtype} {list(array.shape)}; expected [K, D] of float32 or "
            "float64"
        )
    if not isinstance(strings, dict):
        raise ValueError(f"metadata: got {type(strings).__name__}; expected a dict of strings")
    signed = {name: value for name, value in strings.items() if name != "sha256"}
    if strings.get("sha256") != _digest(array, signed):
        raise ValueError("its SHA-256 does not fit: damaged, or not from ndfast.save_class_means")
    check_finite("class_means", array, range(len(array)), array.dtype)
    metadata: dict[str, Any] = strings | _shape_of(array)
    if "counts" in strings:
        counts = _check_counts(json.loads(strings["counts"]), len(array))
        metadata["counts"] = torch.tensor(counts, device="cpu")
    return array, metadata


def _read(path: Path, max_bytes: int) -> tuple[np.ndarray, dict[str, Any]]:
    decode = _format_of(path).decode
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device be read for ever
        raise ValueError(f"{path}: is no regular file")
    if status.st_size > max_bytes:
        raise ValueError(f"{path}: has {status.st_size} bytes, more than max_bytes={max_bytes}")
    data = path.read_bytes()
    try:
        return decode(data, max_bytes)
    except Exception as error:  # hostile bytes make parsers raise anything, RecursionError too
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _to_array(means: Tensor) -> np.ndarray:
    if not isinstance(means, Tensor):
        raise TypeError(f"means: got {type(means).__name__}; expected a torch.Tensor")
    if not means.is_floating_point():
        raise TypeError(f"means: got dtype {means.dtype}; expected a floating-point dtype")
    if means.dim() != 2 or means.numel() == 0:
        raise ValueError(f"means: got shape {list(means.shape)}; expected [K, D], both 1 or more")
    dtype = torch.float64 if means.dtype == torch.float64 else torch.float32
    array = means.detach().to("cpu", dtype).contiguous().numpy()
    check_finite("means", array, range(len(array)), array.dtype)
    return array


def _check_counts(counts: Tensor | np.ndarray | Sequence[int], K: int) -> list[int]:
    try:
        numbers = np.asarray(counts).tolist()
    except ValueError:  # ragged
        numbers = None
    if not isinstance(numbers, list) or len(numbers) != K or not all(map(_is_count, numbers)):
        raise ValueError(f"counts: got {reprlib.repr(counts)}; expected {K} integers, 0 or more")
    return numbers


def _is_count(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _to_strings(
    metadata: dict[str, str], counts: Tensor | np.ndarray | Sequence[int] | None, K: int
) -> dict[str, str]:
    for name, value in metadata.items():
        if name in _OWN:
            raise ValueError(f"{name}: is written by ndfast itself; choose another name")
        if not isinstance(value, str):
            raise TypeError(f"{name}: got {type(value).__name__}; metadata takes strings")
    if counts is None:
        return metadata
    return metadata | {"counts": json.dumps(_check_counts(counts, K))}
