"""Reads CIFAR as it is published, and npz files. Nothing that a file holds is executed.

A broken file makes pickle, tarfile, zipfile and numpy raise nearly any exception, from KeyError to
NotImplementedError, so every one of theirs becomes a ConfigError.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ndfast.train.errors import ConfigError


class Arrays(NamedTuple):
    """Images uint8 or float32 [N, C, H, W] or [N, C, L], and labels int64 [N]."""

    images: np.ndarray
    labels: np.ndarray


class _Cifar(NamedTuple):
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    labels: bytes
    num_classes: int


_CIFAR = {
    "cifar10": _Cifar(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        b"labels",
        10,
    ),
    "cifar100": _Cifar(
        "cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", b"fine_labels", 100
    ),
}


def read_cifar(name: str, folder: Path) -> tuple[Arrays, Arrays]:
    """The images for training and for testing, uint8 [N, 3, 32, 32].

    Args:
        name: "cifar10" or "cifar100".
        folder: holds the folder of the Python version, its tar.gz, or NAME.npz (see `read_npz`);
            the first of these is taken.

    Raises:
        ConfigError: it holds none of them, or what it holds is broken.
    """
    layout = _CIFAR[name]
    unpacked, archive, npz = folder / layout.folder, folder / layout.archive, folder / f"{name}.npz"
    if unpacked.is_dir() or archive.is_file():
        source = unpacked if unpacked.is_dir() else archive
        try:
            files = _read_files(layout, source)
        except Exception as error:
            raise _broken(f"data_dir: {source} is not complete", error) from error
        batches = {file: _read_batch(raw, layout, source / file) for file, raw in files.items()}
        train = Arrays(
            np.concatenate([batches[file].images for file in layout.train]),
            np.concatenate([batches[file].labels for file in layout.train]),
        )
        test = batches[layout.test]
    elif npz.is_file():
        source = npz
        train, test = read_npz(npz)
    else:
        raise ConfigError(
            f"data_dir: found no {name} in {folder}; put {layout.archive}, its folder "
            f"{layout.folder}, or {name}.npz there"
        )
    num_classes = _check_classes(train, test, source)
    kind, shape = train.images.dtype, train.images.shape[1:]
    if (kind, shape, num_classes) != (np.uint8, (3, 32, 32), layout.num_classes):
        raise ConfigError(
            f"data_dir: {source} has images of {kind} {list(shape)} in {num_classes} classes; "
            f"{name} takes uint8 [3, 32, 32] in {layout.num_classes}"
        )
    return train, test


def _read_files(layout: _Cifar, source: Path) -> dict[str, bytes]:
    names = (*layout.train, layout.test)
    if source.is_dir():
        return {name: (source / name).read_bytes() for name in names}
    with gzip.open(source) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        members = {name: archive.extractfile(f"{layout.folder}/{name}") for name in names}
        files = {name: member.read() for name, member in members.items() if member is not None}
        while stream.read(2**20):  # at its end gzip compares a checksum of it all
            pass
        return files


def _broken(sentence: str, error: Exception) -> ConfigError:
    return ConfigError(f"{sentence} ({' '.join(str(error).split()) or type(error).__name__})")


class _BatchUnpickler(pickle.Unpickler):
    """Makes bytes, numbers, lists, dicts and numpy arrays, and calls nothing else.

    An unpickler that looks names up runs whatever a file asks it to.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The three names by which any numpy has pickled its arrays."""
        if name == "_reconstruct" and module.startswith("numpy."):
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_batch(raw: bytes, layout: _Cifar, source: Path) -> Arrays:
    try:
        batch = _BatchUnpickler(io.BytesIO(raw), encoding="bytes").load()
        pixels = np.asarray(batch[b"data"])
        labels = np.array(batch[layout.labels], dtype=np.int64)
        if pixels.dtype != np.uint8 or labels.shape != pixels.shape[:1]:
            raise ValueError(f"{pixels.dtype} {pixels.shape} for {labels.shape} labels")
        return Arrays(pixels.reshape(-1, 3, 32, 32), labels)
    except Exception as error:
        raise _broken(f"data_dir: {source} is no CIFAR batch", error) from error


def read_npz(file: Path) -> tuple[Arrays, Arrays]:
    """The images for training and for testing in an npz file.

    Args:
        file: holds x_train and x_test, uint8 or floating-point, and y_train and y_test, integers
            [N] or [N, 1]. Images are [N, H, W, C] where their last axis is 1 or 3 long; or 2 or 4
            and both before it longer: then the last channel is an alpha and is dropped, as PIL
            drops it for a folder of images. Else they are [N, C, H, W] of whatever channels; or
            [N, H, W] of one; signals are [N, L].

    Raises:
        ConfigError: the file is missing or does not hold that.
    """
    if not file.is_file():
        raise ConfigError(f"data: found no file {file}; npz:FILE takes one that numpy.savez wrote")
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with file.open("rb") as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as found:
            x_train, y_train, x_test, y_test = (found[name] for name in names)
    except Exception as error:
        wanted = ", ".join(names)
        raise _broken(f"data: {file} is no npz file of the arrays {wanted}", error) from error
    train = _check_arrays(x_train, y_train, f"{file}: x_train and y_train")
    test = _check_arrays(x_test, y_test, f"{file}: x_test and y_test")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ConfigError(
            f"data: {file} has training images of {list(train.images.shape[1:])} and test images "
            f"of {list(test.images.shape[1:])}; expected one shape"
        )
    _check_classes(train, test, file)
    return train, test


def _check_arrays(images: np.ndarray, labels: np.ndarray, source: str) -> Arrays:
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise ConfigError(f"data: {source}: got images of {images.dtype}; expected uint8 or floats")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(f"data: {source}: got labels of {labels.dtype}; expected integers")
    if images.ndim not in (2, 3, 4) or images.size == 0 or labels.size != len(images):
        raise ConfigError(
            f"data: {source}: got the shapes {list(images.shape)} and {list(labels.shape)}; "
            "expected [N, H, W, C], [N, C, H, W], [N, H, W] or [N, L], and [N]"
        )
    if images.ndim < 4:
        images = images[:, None]
    elif images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.shape[3] in (2, 4) and min(images.shape[1:3]) > 4:
        images = images[..., :-1].transpose(0, 3, 1, 2)
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise ConfigError(f"data: {source}: got images with NaN or Inf; expected finite ones")
    return Arrays(np.ascontiguousarray(images), labels.astype(np.int64).reshape(-1))


def _check_classes(train: Arrays, test: Arrays, source: Path) -> int:
    """K, which the training labels decide."""
    found = np.unique(train.labels)
    num_classes = len(found)
    for labels in (found, test.labels):
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ConfigError(
                f"data: {source} has labels from {labels.min()} to {labels.max()}, and "
                f"{num_classes} classes to train on; expected 0 to {num_classes - 1}, each with "
                "a training image"
            )
    return num_classes
