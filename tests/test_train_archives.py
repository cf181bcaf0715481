"""CIFAR and npz files: what is read from them, and what is refused."""

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
from ndfast.train.data.folders import read_image
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


@pytest.mark.parametrize(
    ("shape", "image_shape", "augmented"),
    [
        ((20, 7, 9, 3), (3, 7, 9), True),
        ((20, 3, 7, 9), (3, 7, 9), True),
        ((20, 7, 9, 1), (1, 7, 9), False),
        ((20, 5, 7, 9), (5, 7, 9), False),
        ((20, 7, 9), (1, 7, 9), False),
        ((20, 11), (1, 11), False),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_npz_of_any_shape(
    shape: tuple[int, ...],
    image_shape: tuple[int, ...],
    augmented: bool,
    dtype: type,
    tmp_path: Path,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(256, size=shape).astype(dtype), np.arange(20) % 4
    file = tmp_path / "some.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:5], y_test=labels[:5])
    data = build_data(f"npz:{file}")
    assert (data.num_classes, data.image_shape) == (4, image_shape)
    channels_first = np.moveaxis(images, -1, 1) if shape[-1] in (1, 3) else images
    expected = channels_first.reshape(20, *image_shape).astype(np.float64)
    axes = (0, *range(2, expected.ndim))
    mean = expected.mean(axis=axes, keepdims=True)
    expected = (expected - mean) / expected.std(axis=axes, keepdims=True)
    found, _ = all_rows(data.train)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(all_rows(data.test)[0], expected[:5], rtol=0, atol=1e-5)
    assert torch.equal(all_rows(data.train, seed=seed)[0], found) != augmented


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((8, 32, 32, 4), 3),  # RGBA
        ((8, 32, 24, 4), 3),
        ((8, 32, 32, 2), 1),  # grey and alpha
        ((8, 4, 32, 32), None),  # channels first keep them all
        ((8, 2, 32, 32), None),
        ((8, 3, 4, 4), None),
        ((8, 64, 4, 4), None),
        ((8, 16, 8, 2), 1),
        ((8, 512, 2, 2), None),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_alpha_is_dropped(
    shape: tuple[int, ...], channels: int | None, dtype: type, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(256, size=shape).astype(dtype), np.arange(8) % 4
    file = tmp_path / "some.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = build_data(f"npz:{file}")
    expected = images if channels is None else np.moveaxis(images[..., :channels], -1, 1)
    assert data.image_shape == expected.shape[1:]
    kept = data.train.arrays.images  # type: ignore[attr-defined]
    assert (kept == expected).all()


def test_rgba_is_what_a_folder_of_images_gives(tmp_path: Path, seed: int) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="needs Pillow")
    images = np.random.default_rng(seed).integers(256, size=(8, 9, 7, 4), dtype=np.uint8)
    file = tmp_path / "some.npz"
    labels = np.arange(8) % 4
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    kept = build_data(f"npz:{file}").train.arrays.images  # type: ignore[attr-defined]
    for image, own in zip(images, kept, strict=True):
        image_module.fromarray(image).save(tmp_path / "one.png")
        read = np.asarray(read_image(str(tmp_path / "one.png")))
        assert (read.transpose(2, 0, 1) == own).all()


def test_a_constant_channel_is_zero(tmp_path: Path) -> None:
    images = np.full((4, 6), 7, np.uint8)
    file = tmp_path / "some.npz"
    np.savez(file, x_train=images, y_train=[0, 1, 0, 1], x_test=images, y_test=[0, 1, 0, 1])
    assert not all_rows(build_data(f"npz:{file}").train)[0].any()


GOOD = {
    "x_train": np.zeros((3, 4, 4), np.uint8),
    "y_train": np.array([0, 1, 2]),
    "x_test": np.zeros((2, 4, 4), np.uint8),
    "y_test": np.array([2, 0]),
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": np.zeros((3, 4, 4), np.int32)}, "images of int32; expected uint8 or floats"),
        ({"y_test": np.array([0.0, 1.0])}, "labels of float64; expected integers"),
        ({"y_train": np.array([0, 1])}, r"x_train and y_train: got the shapes \[3, 4, 4\] and \[2"),
        ({"x_test": np.zeros((0, 4, 4)), "y_test": np.array([], np.int64)}, r"\[0, 4, 4\]"),
        ({"x_test": np.zeros((2, 4, 5), np.uint8)}, "expected one shape"),
        ({"x_test": np.full((2, 4, 4), np.nan)}, "NaN or Inf"),
        ({"y_train": np.array([0, 1, 3])}, "from 0 to 3, and 3 classes"),
        ({"y_train": np.array([-1, 0, 1])}, "from -1 to 1, and 3 classes"),
        ({"y_test": np.array([2, 3])}, "from 2 to 3, and 3 classes"),
        ({"x_train": np.array([{}], dtype=object)}, "no npz file of the arrays .*pickle"),
    ],
)
def test_a_wrong_npz(changed: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    np.savez(file, **GOOD)
    assert build_data(f"npz:{file}").num_classes == 3
    np.savez(file, **(GOOD | changed))
    with pytest.raises(ConfigError, match=message):
        build_data(f"npz:{file}")


def test_an_npz_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    with pytest.raises(ConfigError, match=r"data: found no file .*some.npz"):
        build_data(f"npz:{file}")
    np.savez(file, x_train=GOOD["x_train"])
    with pytest.raises(ConfigError, match=r"no npz file of the arrays .*y_train"):
        build_data(f"npz:{file}")
    whole = file.read_bytes()
    for raw in (b"", b"text", whole[:100], pickle.dumps({})):
        file.write_bytes(raw)
        with pytest.raises(ConfigError, match=r"some.npz is no npz file of the arrays"):
            build_data(f"npz:{file}")
    with file.open("wb") as opened:
        np.save(opened, np.zeros(3))
    with pytest.raises(ConfigError, match=r"some.npz is no npz file of the arrays"):
        build_data(f"npz:{file}")


def test_the_name_tells_other_data_apart(tmp_path: Path) -> None:
    def name(**changed: np.ndarray) -> str:
        file = tmp_path / "some.npz"
        np.savez(file, **(GOOD | changed))
        return build_data(f"npz:{file}").name

    other_image = GOOD["x_train"].copy()
    other_image[1, 2, 3] = 1
    shape = {"x_train": np.zeros((3, 2, 8), np.uint8), "x_test": np.zeros((2, 2, 8), np.uint8)}
    names = [
        name(),
        name(y_train=np.array([0, 2, 1])),
        name(x_train=other_image),
        name(**shape),
    ]
    assert len(set(names)) == 4
    assert name() == names[0]
    (tmp_path / "some.npz").rename(tmp_path / "moved.npz")
    assert build_data(f"npz:{tmp_path / 'moved.npz'}").name == names[0]
