"""Noise in place of images, of any size, to measure throughput with."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from torch import Tensor

from ndfast.train.data import Data
from ndfast.train.data.batches import Batch
from ndfast.train.errors import ConfigError

_STARTS = 2**20


class SyntheticDataset:
    """Normal noise: row i is a window of one stretch of it, the same in whatever batch.

    Rows that are a multiple of 2²⁰ apart have the same image; the labels go round the classes.
    """

    num_views = 1
    preprocessing = "none"

    def __init__(
        self, rows: int, num_classes: int, image_shape: tuple[int, ...], seed: int
    ) -> None:
        self.rows = rows
        self.num_classes = num_classes
        self.image_shape = image_shape
        self._size = math.prod(image_shape)
        rng = np.random.default_rng(seed)
        self._noise = rng.standard_normal(self._size + _STARTS - 1, dtype=np.float32)

    def __len__(self) -> int:
        return self.rows

    def __getitems__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images float32 [n, C, ...] and labels int64 [n]."""
        rows = np.array(batch.indices, dtype=np.int64)
        # An odd factor makes each start occur once; by the golden ratio, neighbours are far apart.
        starts = rows * 648055 % _STARTS
        windows = np.lib.stride_tricks.sliding_window_view(self._noise, self._size)
        return (
            torch.from_numpy(windows[starts]).reshape(-1, *self.image_shape),
            torch.from_numpy(rows % self.num_classes),
        )


def synthetic(sizes: str) -> Data:
    """A synthetic set, and another of a tenth of its rows to test on.

    Args:
        sizes: rows, classes and image shape: "1281167,1000,3x224x224", or "4000,10,1x40" for
            signals.

    Raises:
        ConfigError: ``sizes`` is spelled otherwise, or has more classes than rows.
    """
    name = f"synthetic:{sizes}"
    found = re.fullmatch(r"(\d+),(\d+),(\d+(?:x\d+){1,2})", sizes, re.ASCII)
    if found is None or 0 in map(int, re.split("[,x]", sizes)):
        raise ConfigError(
            f"data: got {name!r}; expected synthetic:N,K,CxHxW or synthetic:N,K,CxL, as in "
            "synthetic:10000,100,3x32x32"
        )
    rows, num_classes = int(found[1]), int(found[2])
    if rows < num_classes:
        raise ConfigError(f"data: got {name!r}; expected at least as many images as classes")
    shape = tuple(map(int, found[3].split("x")))
    return Data(
        SyntheticDataset(rows, num_classes, shape, seed=0),
        SyntheticDataset(-(-rows // 10), num_classes, shape, seed=1),
        num_classes,
        shape,
        name,
    )
