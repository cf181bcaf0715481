"""Labels: two of them mixed, and the look for a label or a share that is out of range."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)  # tensors do not compare to a bool
class Mix:
    """The target of a batch made by mixup or cutmix: the centre is lam·C[a] + (1-lam)·C[b].

    The centres are mixed first and normalised after, as the KD++ authors' DeiT trainer does.

    Attributes:
        target_a: class indices as `ndfast.nd_loss` takes them for ``target``.
        target_b: class indices of the same shape. A row with either of them ignored is ignored.
        lam: the share of ``target_a``, from 0 to 1; a number, or a floating-point tensor of one
            value or of one a row (the shape of ``target_a``).
    """

    target_a: Tensor
    target_b: Tensor
    lam: float | Tensor


def check_label_range(
    target: Tensor | None, target_b: Tensor | None, K: int, ignore_index: int
) -> None:
    """Looks at the labels, which synchronises with a GPU.

    Raises:
        IndexError: a label is not in [0, K) and not ``ignore_index``; names the first such row.
    """
    first = "target" if target_b is None else "target.target_a"
    for name, labels in ((first, target), ("target.target_b", target_b)):
        if labels is None or labels.numel() == 0:
            continue
        labels = labels.long()  # -100 and 300 are 156 and 44 where uint8 is compared with them
        bad = ((labels < 0) | (labels >= K)) & (labels != ignore_index)
        if bad.any():
            row = int(bad.flatten().int().argmax())
            raise IndexError(
                f"{name}: class {int(labels.flatten()[row])} in row {row} is out of bounds for "
                f"class_means of {K} classes"
            )


def check_shares(lam: Tensor) -> None:
    """Looks at `Mix.lam`, one share a row, which synchronises with a GPU.

    Raises:
        ValueError: a share is not from 0 to 1; names the first such row.
    """
    bad = ~((lam >= 0) & (lam <= 1))  # a NaN compares false
    if bad.any():
        row = int(bad.int().argmax())
        raise ValueError(
            f"target.lam: got {float(lam[row])} in row {row}; expected a share from 0 to 1"
        )
