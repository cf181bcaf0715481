"""CIFAR's files: what is read from them, and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from whole_dataset import all_rows

from ndfast.train.data import build_data
from ndfast.train.data.archives import Arrays
from ndfast.train.errors import ConfigError


class Python2Pickler(pickle._Pickler):  # the one in Python, which takes a table
    """Writes byte strings as Python 2 did, which wrote CIFAR."""

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}  # noqa: RUF012


def python2_pickle(value: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_cifar(name: str, root: Path, rng: np.random.Generator) -> dict[str, Arrays]:
    """A small set in the format of the published one; returns what each file holds."""
    cifar100 = name == "cifar100"
    folder = root / ("cifar-100-python" if cifar100 else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    files = ["train", "test"] if cifar100 else [f"data_batch_{n}" for n in range(1, 6)]
    files += [] if cifar100 else ["test_batch"]
    written = {}
    for file in files:
        rows = 100 if cifar100 else 10
        pixels = rng.integers(256, size=(rows, 3072), dtype=np.uint8)
        labels = rng.permutation(rows)
        batch = {b"data": pixels, b"filenames": [b"a.png"] * rows, b"batch_label": b"of 1"}
        if cifar100:
            batch |= {b"fine_labels": labels.tolist(), b"coarse_labels": [0] * rows}
        else:
            batch |= {b"labels": labels.tolist()}
        (folder / file).write_bytes(python2_pickle(batch))
        written[file] = Arrays(pixels.reshape(-1, 3, 32, 32), labels)
    return written


def pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    shutil.rmtree(folder)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_as_published(name: str, packed: bool, tmp_path: Path, seed: int) -> None:
    written = write_cifar(name, tmp_path, np.random.default_rng(seed))
    if packed:
        folder = next(tmp_path.iterdir())
        stem = {"cifar10": "cifar-10-python", "cifar100": "cifar-100-python"}[name]
        pack(folder, tmp_path / f"{stem}.tar.gz")
    data = build_data(name, str(tmp_path))
    *train, test = written.values()
    expected = np.concatenate([arrays.images for arrays in train]).astype(np.float64) / 255
    mean, std = {
        "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        "cifar100": ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]),
    }[name]
    expected = (expected - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    images, labels = all_rows(data.train)
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-5)
    assert labels.tolist() == np.concatenate([arrays.labels for arrays in train]).tolist()
    assert all_rows(data.test)[1].tolist() == test.labels.tolist()
    assert (data.num_classes, data.image_shape) == (int(name[5:]), (3, 32, 32))
    # Augmented in training alone, and never the test images.
    assert not torch.equal(all_rows(data.train, seed=1)[0], images)
    assert torch.equal(all_rows(data.test, seed=1)[0], all_rows(data.test)[0])


class Runs:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path, seed: int) -> None:
    write_cifar("cifar100", tmp_path, np.random.default_rng(seed))
    witness = tmp_path / "witness"
    file = tmp_path / "cifar-100-python" / "test"
    file.write_bytes(pickle.dumps({"data": Runs(f"touch {witness}")}, 2))
    with pytest.raises(ConfigError, match=r"data_dir: .*test is no CIFAR batch \(.*posix.system"):
        build_data("cifar100", str(tmp_path))
    assert not witness.exists()
    for name in ("numpy.core.multiarray\nscalar", "numpy\nload", "builtins\neval"):
        file.write_bytes(b"\x80\x02c" + name.encode() + b"\n.")
        with pytest.raises(ConfigError, match="it asks for " + name.replace("\n", ".")):
            build_data("cifar100", str(tmp_path))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (b"not a pickle", "no CIFAR batch"),
        (b"\x80\x02X\x01\0\0\0aQ.", "persistent id instruction was encountered, but"),
        (python2_pickle([1]), "no CIFAR batch"),
        (python2_pickle({b"data": np.zeros((2, 3072), np.uint8)}), "fine_labels"),
        (
            python2_pickle({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0]}),
            r"uint8 \(2, 3072\) for \(1,\) labels",
        ),
        (
            python2_pickle({b"data": np.zeros((2, 3072)), b"fine_labels": [0, 1]}),
            r"float64 \(2, 3072\)",
        ),
        (
            python2_pickle({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, 1]}),
            "images of uint8 .* in 2 classes; cifar100 takes .* in 100",
        ),
    ],
)
def test_a_broken_cifar_batch(batch: bytes, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for file in ("train", "test"):
        (folder / file).write_bytes(batch)
    with pytest.raises(ConfigError, match=message):
        build_data("cifar100", str(tmp_path))


def test_a_broken_or_incomplete_archive(tmp_path: Path, seed: int) -> None:
    write_cifar("cifar10", tmp_path, np.random.default_rng(seed))
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(ConfigError, match=r"cifar-10-batches-py is not complete .*data_batch_3"):
        build_data("cifar10", str(tmp_path))
    archive = tmp_path / "cifar-10-python.tar.gz"
    pack(tmp_path / "cifar-10-batches-py", archive)
    with pytest.raises(ConfigError, match=r"python.tar.gz is not complete .*data_batch_3"):
        build_data("cifar10", str(tmp_path))
    write_cifar("cifar10", tmp_path, np.random.default_rng(seed))
    pack(tmp_path / "cifar-10-batches-py", archive)
    whole = archive.read_bytes()
    build_data("cifar10", str(tmp_path))
    # Cut off, of another checksum, no gzip at all, empty.
    for raw in (whole[:5000], whole[:-8] + b"sums" + whole[-4:], b"\x1f\x8b nothing", b""):
        archive.write_bytes(raw)
        with pytest.raises(ConfigError, match=r"python.tar.gz is not complete"):
            build_data("cifar10", str(tmp_path))


def test_cifar_as_npz(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(10, 32, 32, 3), dtype=np.uint8)
    labels = rng.permutation(10)[:, None]  # Keras has them as a column
    file = tmp_path / "cifar10.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    found, found_labels = all_rows(build_data("cifar10", str(tmp_path)).test)
    red = (images[4, 5, 6, 0] / 255 - 0.4914) / 0.2470
    assert found[4, 0, 5, 6].item() == pytest.approx(red, abs=1e-5)
    assert found_labels.tolist() == labels.flatten().tolist()
    np.savez(file, x_train=images / 255, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(ConfigError, match=r"images of float32 .*cifar10 takes uint8"):
        build_data("cifar10", str(tmp_path))
