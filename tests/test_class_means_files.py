"""Class means in files: what is saved comes back bit for bit, and only what is sound is saved."""

from __future__ import annotations

import errno
import json
import os
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

KDPP = Path(__file__).parents[2] / "shared" / "data" / "kdpp"
WITH_METADATA = (".npz", ".safetensors")
SUFFIXES = (".json", *WITH_METADATA)
MEANS = torch.tensor([[0.5, -1.0, 2.0], [3.0, 4.0, 5.0]])
NAN = torch.tensor([[0.5, 1.0], [2.0, torch.nan]])


def any_finite_float32(K: int, D: int) -> tuple[Tensor, int]:
    """Every kind of float32, subnormal and huge ones included, and the seed they come from."""
    generator = torch.Generator()
    seed = generator.seed()
    bits = torch.randint(-(2**31), 2**31, (K, D), generator=generator).to(torch.int32)
    return torch.nan_to_num(bits.view(torch.float32)), seed


def bits_of(means: Tensor) -> Tensor:
    return means.view(torch.int32 if means.dtype == torch.float32 else torch.int64)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_float32_comes_back_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    means, seed = any_finite_float32(50, 31)
    save_class_means(tmp_path / f"means{suffix}", means)
    loaded = load_class_means(str(tmp_path / f"means{suffix}"))
    assert loaded.dtype == torch.float32
    assert torch.equal(bits_of(loaded), bits_of(means)), f"seed {seed}"


@pytest.mark.parametrize("suffix", WITH_METADATA)
def test_float64_comes_back_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    generator = torch.Generator()
    seed = generator.seed()
    means = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    save_class_means(tmp_path / f"means{suffix}", means)
    loaded = load_class_means(tmp_path / f"means{suffix}")
    assert loaded.dtype == torch.float64
    assert torch.equal(bits_of(loaded), bits_of(means)), f"seed {seed}"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    save_class_means(tmp_path / f"means{suffix}", MEANS.to(dtype))
    loaded = load_class_means(tmp_path / f"means{suffix}")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, MEANS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_loaded_can_be_written_to(tmp_path: Path, suffix: str) -> None:
    means = MEANS.T.contiguous().T.requires_grad_()  # not contiguous, and part of a graph
    save_class_means(tmp_path / f"means{suffix}", means)
    loaded = load_class_means(tmp_path / f"means{suffix}")
    loaded += 1
    assert torch.equal(loaded, MEANS + 1)


@pytest.mark.parametrize(
    ("name", "K", "D"), [("cifar100_resnet56.json", 100, 64), ("coco_r101.json", 81, 1024)]
)
def test_the_authors_files(tmp_path: Path, name: str, K: int, D: int) -> None:
    if not (KDPP / name).exists():
        pytest.skip(f"no {name} beside the checkout")
    means = load_class_means(KDPP / name)
    assert means.shape == (K, D)
    by_class = json.loads((KDPP / name).read_bytes())
    for key, values in by_class.items():
        assert torch.equal(means[int(key)], torch.tensor(values))
    save_class_means(tmp_path / "again.json", means)
    again = json.loads((tmp_path / "again.json").read_bytes())  # as their trainers read it
    for key, values in by_class.items():
        assert torch.equal(torch.tensor(again[key]), torch.tensor(values))


def test_json_keys_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "means.json").write_text('{"2": [4, 5], "10": [9.5, 1e2], ' + ", ".join(
        f'"{k}": [{k}.0, 0.25]' for k in (9, 0, 1, 8, 7, 3, 6, 4, 5)) + "}")  # fmt: skip
    means = load_class_means(tmp_path / "means.json")
    assert means[[0, 2, 9, 10]].tolist() == [[0.0, 0.25], [4.0, 5.0], [9.0, 0.25], [9.5, 100.0]]


@pytest.mark.parametrize("suffix", WITH_METADATA)
@pytest.mark.parametrize("array", [list, torch.tensor, np.array])
def test_metadata(tmp_path: Path, suffix: str, array: Any) -> None:
    path = tmp_path / f"means{suffix}"
    save_class_means(path, MEANS, counts=array([5, 6]), teacher="résnet56", data="cifar")
    metadata = load_class_means_metadata(path)
    assert metadata.pop("counts").tolist() == [5, 6]
    assert len(metadata.pop("sha256")) == 64
    assert metadata == {"teacher": "résnet56", "data": "cifar", "num_classes": 2, "dim": 3}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_where_none_was_given(tmp_path: Path, suffix: str) -> None:
    save_class_means(tmp_path / f"means{suffix}", MEANS)
    metadata = load_class_means_metadata(tmp_path / f"means{suffix}")
    assert ("sha256" in metadata) == (suffix != ".json")
    metadata.pop("sha256", None)
    assert metadata == {"num_classes": 2, "dim": 3}


@pytest.mark.parametrize(
    ("suffix", "means", "metadata", "error", "message"),
    [
        (".npz", [[1.0]], {}, TypeError, "means: got list"),
        (".npz", MEANS.long(), {}, TypeError, r"means: got dtype torch\.int64"),
        (".npz", MEANS[0], {}, ValueError, r"means: got shape \[3\]"),
        (".npz", MEANS[:0], {}, ValueError, r"means: got shape \[0, 3\]"),
        (".json", NAN, {}, ValueError, "means: class 1, column 1 is nan"),
        (".safetensors", NAN, {}, ValueError, "means: class 1, column 1 is nan"),
        (".json", MEANS.double() * 1e39, {}, ValueError, r"means: class 0, column 0 is 5e\+38"),
        (".json", MEANS, {"teacher": "a"}, ValueError, "teacher: KD.*'s JSON has no room"),
        (".json", MEANS, {"counts": [1, 2]}, ValueError, "counts: KD.*'s JSON has no room"),
        (".npz", MEANS, {"teacher": 56}, TypeError, "teacher: got int; metadata takes strings"),
        (".npz", MEANS, {"sha256": "0"}, ValueError, "sha256: is written by ndfast itself"),
        (".npz", MEANS, {"dim": "3"}, ValueError, "dim: is written by ndfast itself"),
        (".npz", MEANS, {"counts": [1]}, ValueError, r"counts: got \[1\]; expected 2 integers"),
        (".npz", MEANS, {"counts": [1, -1]}, ValueError, "counts: got"),
        (".npz", MEANS, {"counts": torch.tensor([1.0, 2.0])}, ValueError, "counts: got"),
        (".npz", MEANS, {"counts": [2**63, 1]}, ValueError, "counts: got"),  # no int64
        (".npz", MEANS, {"counts": 5}, ValueError, "counts: got 5"),
        (".npz", MEANS, {"counts": [[1], [2, 3]]}, ValueError, "counts: got"),
    ],
)
def test_what_is_not_saved(
    tmp_path: Path, suffix: str, means: Tensor, metadata: dict, error: type, message: str
) -> None:
    path = tmp_path / f"means{suffix}"
    path.write_text("what was there")
    with pytest.raises(error, match=message):
        save_class_means(path, means, **metadata)
    assert path.read_text() == "what was there"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_broken_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    path = tmp_path / "means.safetensors"
    save_class_means(path, MEANS)
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space left") as raised:
        save_class_means(path, MEANS + 1)
    assert raised.value.filename == str(path)
    assert torch.equal(load_class_means(path), MEANS)
    assert os.listdir(tmp_path) == ["means.safetensors"]


def test_writing_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "means.npz"
    for means in (MEANS, MEANS + 1):
        save_class_means(path, means)
        assert torch.equal(load_class_means(path), means)
    assert os.listdir(tmp_path) == ["means.npz"]


def test_what_a_file_is_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "v1.npz", tmp_path / "current.npz"
    save_class_means(target, MEANS)
    target.chmod(0o600)
    link.symlink_to("v1.npz")
    save_class_means(link, MEANS + 1)
    assert link.is_symlink()
    assert torch.equal(load_class_means(target), MEANS + 1)
    assert target.stat().st_mode & 0o777 == 0o600


def test_the_longest_name_and_a_folder_of_the_name(tmp_path: Path) -> None:
    path = tmp_path / f"{'m' * 251}.npz"
    save_class_means(path, MEANS)
    assert os.listdir(tmp_path) == [path.name]
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(IsADirectoryError) as raised:
        save_class_means(tmp_path / "folder.npz", MEANS)
    assert raised.value.filename.endswith("folder.npz")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    with pytest.raises(FileNotFoundError, match="no such folder") as raised:
        save_class_means(folder / "means.json", torch.ones(2, 3))
    assert raised.value.filename == str(folder)
