"""Data sets that are held in memory: digits, MNIST-1D, CIFAR, and any npz archive."""

from __future__ import annotations

import hashlib
import math
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ndfast.train.data import Data
from ndfast.train.data.archives import Arrays, read_cifar, read_npz
from ndfast.train.data.batches import Batch

# Per channel, of the training images from 0 to 1, as the CIFAR trainers of KD papers have them.
_CIFAR_STATISTICS = {
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "cifar100": ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]),
}

_PADDING = 4
_VIEWS = (2, 2 * _PADDING + 1, 2 * _PADDING + 1)
NUM_VIEWS = math.prod(_VIEWS)


class ArrayDataset:
    """Images and labels in memory; a batch is augmented and normalised at once.

    Args:
        arrays: images uint8 or float32 [N, C, ...] and labels int64 [N].
        mean: [C], in the unit of the images.
        std: [C], the same.
        augmented: crop and flip the images [N, C, H, W] of a batch that has views.

    Attributes:
        num_views: of an image, see `crop_and_flip`; 1 where nothing is augmented.
        preprocessing: mean and deviation, and how it is augmented.
    """

    def __init__(
        self, arrays: Arrays, mean: np.ndarray, std: np.ndarray, augmented: bool = False
    ) -> None:
        self.arrays = arrays
        self.num_views = NUM_VIEWS if augmented else 1
        augmentation = f", crops of ±{_PADDING}, flips" if augmented else ""
        self.preprocessing = f"mean {mean.tolist()}, std {std.tolist()}{augmentation}"
        per_channel = (-1,) + (1,) * (arrays.images.ndim - 2)
        self._mean, self._std = (
            torch.from_numpy(values.astype(np.float32)).reshape(per_channel)
            for values in (mean, std)
        )

    def __len__(self) -> int:
        return len(self.arrays.labels)

    def __getitems__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images float32 [n, C, ...], of zero mean and unit variance in training; labels int64."""
        images = self.arrays.images[batch.indices]
        if self.num_views > 1 and batch.views is not None:
            images = crop_and_flip(images, np.array(batch.views) % self.num_views)
        normalised = torch.from_numpy(images).float().sub_(self._mean).div_(self._std)
        return normalised, torch.from_numpy(self.arrays.labels[batch.indices])


def crop_and_flip(images: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Pads each image by 4 zeros on each side, crops it to its size, and flips it or not.

    Args:
        images: [N, C, H, W].
        views: int64 [N], from 0 to `NUM_VIEWS` − 1: (flipped · 9 + top) · 9 + left, where the crop
            begins in the padded image, and whether it is then flipped, left to right.
    """
    N, _, H, W = images.shape
    edge = (_PADDING, _PADDING)
    padded = np.pad(images, ((0, 0), (0, 0), edge, edge))
    # [N, C, 9, 9, H, W], a view
    crops = np.lib.stride_tricks.sliding_window_view(padded, (H, W), axis=(2, 3))
    flipped, top, left = np.unravel_index(views, _VIEWS)
    cropped = crops[np.arange(N), :, top, left]
    flipped = flipped.astype(bool)
    cropped[flipped] = cropped[flipped, :, :, ::-1]
    return cropped


def digits() -> Data:
    """scikit-learn's copy of the UCI handwritten digits: 1,797 images of 8×8, 10 classes.

    A fifth of each class trains and the rest tests: with more, every method gets nearly everything
    right and there is nothing left to compare.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        images.reshape(-1, 1, 8, 8), labels, train_size=0.2, stratify=labels, random_state=0
    )
    return _build("digits", _arrays(train, train_labels), _arrays(test, test_labels))


def mnist1d() -> Data:
    """MNIST-1D (Greydanus and Kobak, arXiv 2011.14439): 4,000 and 1,000 signals of 40 samples.

    Generated with the authors' own settings and seed by the package mnist1d, whose get_dataset
    would look on the network first.
    """
    from mnist1d.data import get_dataset_args, make_dataset

    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        made = make_dataset(get_dataset_args())  # seeds the global generators
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
    train = _arrays(made["x"][:, None], made["y"])
    return _build("mnist1d", train, _arrays(made["x_test"][:, None], made["y_test"]))


def cifar(name: str, folder: str) -> Data:
    """CIFAR-10 or CIFAR-100 (Krizhevsky, 2009): 50,000 and 10,000 images of 32×32.

    Augmented in training by 4 pixels of black border, a random crop and a flip. The folder holds
    what `archives.read_cifar` takes.
    """
    train, test = read_cifar(name, Path(folder))
    mean, std = (255 * np.array(values) for values in _CIFAR_STATISTICS[name])
    return _build(f"{name} {_hash(train)}", train, test, (mean, std), augmented=True)


def npz(file: str) -> Data:
    """The images of an npz file, normalised by the mean and standard deviation of each channel.

    Images of three channels are augmented as CIFAR's are, others not. The file holds what
    `archives.read_npz` takes.
    """
    train, test = read_npz(Path(file))
    has_colours = train.images.ndim == 4 and train.images.shape[1] == 3
    return _build(f"npz {_hash(train)}", train, test, augmented=has_colours)


def _arrays(images: np.ndarray, labels: np.ndarray) -> Arrays:
    return Arrays(images.astype(np.float32), labels.astype(np.int64))


def _build(
    name: str,
    train: Arrays,
    test: Arrays,
    statistics: tuple[np.ndarray, np.ndarray] | None = None,
    augmented: bool = False,
) -> Data:
    mean, std = statistics or _mean_and_std(train.images)
    return Data(
        ArrayDataset(train, mean, std, augmented),
        ArrayDataset(test, mean, std),
        int(train.labels.max()) + 1,
        train.images.shape[1:],
        name,
    )


def _mean_and_std(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each channel, float64 [C]; the deviation of a constant channel is given as 1."""
    but_channels = (0, *range(2, images.ndim))
    mean = images.mean(axis=but_channels, keepdims=True, dtype=np.float64)
    # In parts: numpy's std makes a float64 copy of all images.
    parts = np.array_split(images, -(-len(images) // 1024))
    total = sum(np.square(part - mean).sum(axis=but_channels) for part in parts)
    std = np.sqrt(total / (images.size / images.shape[1]))
    return mean.flatten(), np.where(std > 0, std, 1.0)


def _hash(arrays: Arrays) -> str:
    """Of the shape, all labels, and about 256 images."""
    some = np.ascontiguousarray(arrays.images[:: max(1, len(arrays.images) // 256)])
    digest = hashlib.sha256(repr(arrays.images.shape).encode())
    digest.update(arrays.labels.tobytes())
    digest.update(some.tobytes())
    return digest.hexdigest()[:12]
