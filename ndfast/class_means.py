"""The mean feature of each class over a training set, from a stream of batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ndfast.class_means_arguments import check_count, check_int, flatten_batch

_CPU = torch.device("cpu")
_MAX_LISTED = 100
_CHUNK = 2**20  # numbers in float64 at a time, beside the sums


class ClassMeans:
    """Streams batches of features and labels into the mean feature of each class.

    Sums and counts are kept in float64, so that the order and the size of the batches do not matter
    beyond rounding; memory is (K + 2)·(D + 1) float64 numbers and 8 MB, however many batches come.
    `update` never waits for a GPU, unless the sums are elsewhere. A pickle, or a copy, is its
    numbers, on the CPU until they go where the next batch is.

    A row that is added twice counts twice. Among several processes let each have a share of its
    own, as below: a DistributedSampler repeats rows until all shares are of one size.

    KD++ (arXiv 2305.17007) takes the teacher's penultimate features, in evaluation mode, over the
    training images.

    Args:
        num_classes: K.
        dim: D, the features' width.
        device: where to sum; by default the first batch's device. One that has no float64 (MPS,
            some of Intel's GPUs) leaves it to the CPU.
        ignore_index: rows with this label are left out.

    Raises:
        TypeError: ``num_classes``, ``dim`` or ``ignore_index`` is no int.
        ValueError: ``num_classes`` or ``dim`` is less than 1.

    Examples:
        >>> own = torch.utils.data.Subset(dataset, range(rank, len(dataset), world_size))
        >>> class_means = ndfast.ClassMeans(num_classes=100, dim=64)
        >>> for images, labels in torch.utils.data.DataLoader(own, batch_size=256):
        ...     class_means.update(teacher_features(images), labels)
        >>> class_means.all_reduce()  # does nothing in a single process
        >>> means = class_means.compute(expected_count=len(dataset))
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        device: torch.device | str | None = None,
        ignore_index: int = -100,
    ) -> None:
        check_int("num_classes", num_classes, least=1)
        check_int("dim", dim, least=1)
        check_int("ignore_index", ignore_index)
        self.num_classes = int(num_classes)
        self.dim = int(dim)
        self.ignore_index = int(ignore_index)
        self._chunk_rows = max(1, _CHUNK // self.dim)
        self._named = None if device is None else _with_float64(torch.device(device))
        self._device = self._named
        # Each flat: sums [K + 2, D] and then counts [K + 2], so that one collective carries both.
        # Row K takes labels that are no class and row K + 1 ignored ones: choosing rows by a mask
        # would wait for a GPU.
        self._local: Tensor | None = None  # what only this process has seen
        self._wide: Tensor | None = None  # a chunk's features in float64
        self._shared: Tensor | None = None  # what all_reduce has already summed over the processes

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Adds a batch. Tensors that are not where the sums are kept are copied there.

        On the CPU a label out of range is an IndexError, and nothing of the batch is added. On a
        GPU, where looking would synchronise, such a row touches no class and `compute` reports it.

        Args:
            features: [N, D] or [N, D, 1, 1], of any floating-point dtype; N may be 0.
            labels: class indices [N] of int64, int32 or uint8.

        Raises:
            TypeError: an argument has a type or dtype that is not taken.
            ValueError: a shape does not fit.
            IndexError: a label is out of range (CPU).
        """
        features = flatten_batch(features, labels, self.dim)
        device = _with_float64(features.device) if self._device is None else self._device
        K = self.num_classes
        labels = labels.to(device).long()
        rows = labels.masked_fill((labels < 0) | (labels >= K), K)
        rows = rows.masked_fill(labels == self.ignore_index, K + 1)
        if device.type == "cpu" and (rows == K).any():
            row = int((rows == K).int().argmax())
            raise IndexError(
                f"labels: class {int(labels[row])} in row {row} is out of bounds for {K} classes"
            )
        # Moved before they are widened: half the bytes, and not every device has float64.
        features = features.to(device)
        ones = torch.ones_like(rows, dtype=torch.float64)
        sums, counts = self._split(self._settle(device))
        if device.type == "cpu":
            self._add_in_chunks(sums, features, rows)
        else:
            sums.index_add_(0, rows, features.double())
        counts.index_add_(0, rows, ones)  # torch.bincount would wait for a GPU

    def all_reduce(
        self, group: dist.ProcessGroup | None = None, *, expected_count: int | None = None
    ) -> None:
        """Sums over the processes of ``group``, in place; every process of it must call this.

        Only what came since the last call is sent, so that a second call counts nothing twice and
        updates may go on after one. Always give the same group. A process may have seen no batch,
        and each any number of them. Without an initialised process group nothing is summed.

        Args:
            group: the process group of torch.distributed; by default all processes.
            expected_count: as in `compute`, over all processes; give each the same. Checked after
                the sum, which stands, so that all of them raise; waits for a GPU.

        Raises:
            TypeError, ValueError, IndexError: as `compute` does for ``expected_count``.
        """
        if expected_count is not None:
            check_int("expected_count", expected_count, least=0)
        if dist.is_available() and dist.is_initialized():
            self._sum_over_processes(group)
        if expected_count is not None:
            self._check_rows(self._split(self._total())[1], expected_count)

    def _sum_over_processes(self, group: dist.ProcessGroup | None) -> None:
        device = self._device
        if device is None:
            on_gpu = dist.get_backend(group) != "gloo" and torch.cuda.is_available()
            device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else _CPU
        local = self._settle(device)
        dist.all_reduce(local, group=group)
        self._shared = local if self._shared is None else self._shared.add_(local)
        self._local = None

    @property
    def counts(self) -> Tensor:
        """How many rows each class has had, int64 [K]."""
        return self._split(self._total())[1][: self.num_classes].long()

    def compute(
        self, dtype: torch.dtype = torch.float32, *, expected_count: int | None = None
    ) -> Tensor:
        """The class means so far. Waits for a GPU.

        Args:
            dtype: the result's floating-point dtype.
            expected_count: how many rows with a class there must have been, ``counts.sum()``: the
                data set's length, less the rows that ``ignore_index`` leaves out.

        Returns:
            Class means [K, D], on the device of the sums, which is the CPU where the features' has
            no float64.

        Raises:
            TypeError: ``dtype`` is no floating-point dtype, or ``expected_count`` no int.
            IndexError: a label on a GPU was out of range.
            ValueError: there were more or fewer rows than ``expected_count``; a class was never
                seen, or its mean is NaN or infinite in ``dtype``: names the classes. Nothing is
                lost: updates may go on.
        """
        if expected_count is not None:
            check_int("expected_count", expected_count, least=0)
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype: got {dtype}; expected a floating-point dtype")
        K = self.num_classes
        # A normal tensor even where the loop runs in inference mode: the loss will save it.
        with torch.inference_mode(False), torch.no_grad():
            sums, counts = self._split(self._total())
            self._check_rows(counts, expected_count)
            sums, counts = sums[:K], counts[:K, None]
            unseen = counts[:, 0] == 0
            if unseen.any():
                raise ValueError(f"classes never seen, of {K}: {_list_classes(unseen)}")
            means = sums.new_empty(K, self.dim, dtype=dtype)
            bad = torch.zeros_like(unseen)
            # In float64 and at once they would take as much memory again as the sums.
            for first in range(0, K, self._chunk_rows):
                some = slice(first, first + self._chunk_rows)
                means[some] = sums[some] / counts[some]
                bad[some] = ~means[some].isfinite().all(dim=1)
            if bad.any():
                raise ValueError(
                    f"classes whose mean is not finite in {dtype}: {_list_classes(bad)}; their "
                    "features hold NaN or Inf, or the mean or their sum is out of range"
                )
        return means

    def __getstate__(self) -> dict[str, Any]:
        """The numbers as bytes: tensors would be shared with a process that they are sent to, which
        would add to the same sums, and would ask for the very GPU where they are loaded.
        """
        state = self.__dict__ | {"_wide": None, "_device": self._named}
        for name in ("_local", "_shared"):
            if (kept := state[name]) is not None:
                state[name] = kept.cpu().numpy().tobytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        with torch.inference_mode(False):  # as in _zeros
            for name in ("_local", "_shared"):
                if (kept := state[name]) is not None:
                    setattr(self, name, torch.frombuffer(bytearray(kept), dtype=torch.float64))

    def _check_rows(self, counts: Tensor, expected_count: int | None) -> None:
        """Raises if labels were out of range, or the rows are not as many as expected."""
        K = self.num_classes
        numbers = torch.stack([counts[:K].sum(), *counts[K:]]).tolist()  # waits for a GPU once
        rows, out_of_range, ignored = map(int, numbers)
        if out_of_range:
            raise IndexError(
                f"labels: {out_of_range} rows had a class out of bounds for {K} classes"
            )
        if expected_count is not None:
            check_count(expected_count, rows, ignored)

    def _zeros(self, device: torch.device | None) -> Tensor:
        with torch.inference_mode(False):  # else later updates outside inference mode would fail
            size = (self.num_classes + 2) * (self.dim + 1)
            return torch.zeros(size, dtype=torch.float64, device=device or _CPU)

    def _settle(self, device: torch.device) -> Tensor:
        """Has the sums on the device from here on, and returns what this process adds to."""
        self._device = device
        with torch.inference_mode(False):
            if self._shared is not None:
                self._shared = self._shared.to(device)  # one that was loaded is on the CPU
            self._local = self._zeros(device) if self._local is None else self._local.to(device)
        return self._local

    def _split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """The sums [K + 2, D] and the counts [K + 2] in one of the flat tensors."""
        rows = self.num_classes + 2
        return flat[: rows * self.dim].view(rows, self.dim), flat[rows * self.dim :]

    def _add_in_chunks(self, sums: Tensor, features: Tensor, rows: Tensor) -> None:
        """Adds on the CPU, by way of one buffer that stays in the caches.

        4,096 rows of 2,048 features take 3.5 ms on one thread, and 4.4 by way of twice as much. A
        fresh one a batch would cost its page faults.
        """
        if self._wide is None:
            with torch.inference_mode(False):
                size = self._chunk_rows, self.dim
                self._wide = torch.empty(size, dtype=torch.float64, device=_CPU)
        parts = features.split(self._chunk_rows), rows.split(self._chunk_rows)
        for some, of_rows in zip(*parts, strict=True):
            wide = self._wide[: len(some)]
            wide.copy_(some)
            sums.index_add_(0, of_rows, wide)

    def _total(self) -> Tensor:
        """Sums and counts, a copy or not; to be read only."""
        if self._local is None:
            return self._zeros(self._device) if self._shared is None else self._shared
        return self._local if self._shared is None else self._shared + self._local


def _with_float64(device: torch.device) -> torch.device:
    """The device, or the CPU for one without float64."""
    single = torch.zeros(1, dtype=torch.float32, device=device)  # fails if there is no such device
    try:
        torch.zeros(1, dtype=torch.float64, device=device).add_(single)
    except (TypeError, RuntimeError):  # the first is MPS's, the second XPU's, of its kernels alone
        return _CPU
    return device


def _list_classes(mask: Tensor) -> str:
    classes = mask.nonzero().flatten().tolist()
    more = len(classes) - _MAX_LISTED
    return ", ".join(map(str, classes[:_MAX_LISTED])) + (f" and {more} more" if more > 0 else "")
