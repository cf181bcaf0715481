"""Class-mean files, damaged at random or lying about themselves: an error, or the same content."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ndfast.class_means_files import (
    load_class_means,
    load_class_means_metadata,
    save_class_means,
)

ALL = pytest.mark.parametrize("suffix", [".json", ".npz", ".safetensors"])
HASHED = pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
TIMES = 200


def save(folder: Path, suffix: str) -> tuple[Path, Tensor, dict[str, Any]]:
    """A file of random means, what it holds, and its metadata."""
    path = folder / f"means{suffix}"
    means = torch.randn(12, 31) * 10 ** torch.empty(12, 1).uniform_(-30, 30)
    save_class_means(path, means, **({} if suffix == ".json" else {"teacher": "resnet56"}))
    return path, means, load_class_means_metadata(path)


@HASHED
def test_flipped_bits(tmp_path: Path, suffix: str, seed: int) -> None:
    path, means, metadata = save(tmp_path, suffix)
    whole, draw = path.read_bytes(), random.Random(seed)
    refused = 0
    for place in draw.sample(range(8 * len(whole)), TIMES):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            loaded = load_class_means(path), load_class_means_metadata(path)
        except ValueError:
            refused += 1
        else:  # a bit that says nothing about the content: a date in the zip
            assert torch.equal(loaded[0], means), place
            assert loaded[1] == metadata, place
    assert refused > TIMES / 2


@HASHED
def test_every_bit_of_the_numbers(tmp_path: Path, suffix: str, seed: int) -> None:
    path, means, _ = save(tmp_path, suffix)
    whole = path.read_bytes()
    numbers = means.numpy().tobytes()
    begin = whole.index(numbers)
    end = begin + len(numbers)
    for place in random.Random(seed).sample(range(8 * begin, 8 * end), TIMES):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot be read: .*(CRC-32|SHA-256)"):
            load_class_means(path)


@ALL
def test_truncations(tmp_path: Path, suffix: str, seed: int) -> None:
    path, _, _ = save(tmp_path, suffix)
    whole = path.read_bytes()
    for length in random.Random(seed).sample(range(len(whole)), TIMES):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read"):
            load_class_means(path)


def test_json_with_the_checksum_that_an_earlier_version_wrote(tmp_path: Path, seed: int) -> None:
    """As 32 blanks behind the text."""
    path, means, _ = save(tmp_path, ".json")
    path.write_text(path.read_text() + " \t" * 16)
    assert torch.equal(load_class_means(path), means)


def as_safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str = "F32", shape: tuple[int, ...] = (2, 3), end: int = 24) -> dict[str, Any]:
    return {"class_means": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


DATA = bytes(24)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header too small"),
        (as_safetensors(tensor(), DATA, length=2**63), "header too large"),
        (as_safetensors(tensor(), DATA, length=50_000), "invalid header length"),
        (as_safetensors(tensor(), DATA, length=10), "invalid JSON"),
        (as_safetensors(b"\xff" * 16, DATA), "invalid UTF-8"),
        (as_safetensors(b"[" * 100_000), "invalid|recursion"),
        (as_safetensors([]), "invalid"),
        (as_safetensors(tensor(dtype="F99"), DATA), "unknown variant"),
        (as_safetensors(tensor(shape=(2, 4)), DATA), "invalid shape, data type, or offset"),
        (as_safetensors(tensor(shape=(2**62, 2**62)), DATA), "overflow"),
        (as_safetensors(tensor(end=2**60), DATA), "invalid|not fully covered|incomplete"),
        (as_safetensors(tensor(), DATA[:-1]), "not fully covered|incomplete"),
        (as_safetensors(tensor(), DATA + b"x"), "not fully covered|incomplete"),
        (as_safetensors(tensor() | {"__metadata__": {"sha256": 1}}, DATA), "invalid type"),
        (as_safetensors(tensor(dtype="BF16", end=12), DATA[:12]), "bf16|bfloat16|BF16"),
        (as_safetensors(tensor(), DATA), "SHA-256 does not fit"),
    ],
)
def test_lying_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "means.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"(?i)cannot be read: .*({message})"):
        load_class_means(path)


def npy(shape: tuple[int, ...], data: bytes = DATA, descr: str = "<f4") -> bytes:
    """An .npy file that says it has ``shape``."""
    stream = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + data


def as_npz(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def strings(text: str) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(text))
    return stream.getvalue()


GOOD = npy((2, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (as_npz(), "no array class_means, but nothing"),
        (as_npz(metadata=strings("{}")), "no array class_means, but"),
        (as_npz(class_means=GOOD), "SHA-256 does not fit"),
        (as_npz(class_means=GOOD, metadata=strings("{")), "Expecting property name"),
        (as_npz(class_means=GOOD, metadata=strings("[]")), "metadata: got list; expected a dict"),
        (as_npz(class_means=GOOD, metadata=strings("[" * 100_000)), "recursion"),
        (as_npz(class_means=GOOD, metadata=GOOD), "array of size 1"),
        (as_npz(class_means=GOOD, metadata=strings("{}")), "SHA-256 does not fit"),
        (as_npz(class_means=npy((2**60, 3)), metadata=strings("{}")), "allocate|too big|too large"),
        (as_npz(class_means=npy((2**20, 3)), metadata=strings("{}")), "EOF: reading array data"),
        (as_npz(class_means=b"junk", metadata=strings("{}")), "class_means: is no array"),
    ],
)
def test_lying_npz(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "means.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot be read: .*({message})"):
        load_class_means(path)
