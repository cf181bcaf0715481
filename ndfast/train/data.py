"""The data sets: real images that ship in a package, or signals made on the spot. No network."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import TensorDataset


class Data(NamedTuple):
    """Images float32 [N, 1, ...] of zero mean and unit variance in training; labels int64 [N]."""

    train: TensorDataset
    test: TensorDataset
    num_classes: int


def digits() -> Data:
    """scikit-learn's copy of the UCI handwritten digits: 1,797 images of 8×8, 10 classes.

    A fifth of each class trains and the rest tests: with more, every method gets nearly everything
    right and there is nothing left to compare.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        images.reshape(-1, 8, 8), labels, train_size=0.2, stratify=labels, random_state=0
    )
    return _data(train, test, train_labels, test_labels, num_classes=10)


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
    return _data(made["x"], made["x_test"], made["y"], made["y_test"], num_classes=10)


def _data(
    train: np.ndarray,
    test: np.ndarray,
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
) -> Data:
    mean, std = train.mean(), train.std()

    def dataset(images: np.ndarray, labels: np.ndarray) -> TensorDataset:
        normalised = torch.from_numpy((images - mean) / std).float().unsqueeze(1)
        return TensorDataset(normalised, torch.from_numpy(labels).long())

    return Data(dataset(train, train_labels), dataset(test, test_labels), num_classes)


DATA: dict[str, Callable[[], Data]] = {"digits": digits, "mnist1d": mnist1d}
