"""DirectNormLoss: a drop-in replacement for the KD++ authors' class, on the fused loss."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from operator import is_

import torch
from torch import Tensor, nn

from ndfast.arguments import check_number
from ndfast.class_dict import stack_class_dict
from ndfast.dispatch import check_backend_name
from ndfast.functional import nd_loss

_IGNORE_INDEX = -100
_NAMES = {"student": "s_emb", "teacher": "t_emb", "class_means": "T_EMB", "target": "labels"}
_CPU = torch.device("cpu")


class DirectNormLoss(nn.Module):
    """The module of the KD++ authors, for their trainers and what grew out of them.

    The loss is

        factor · mean_i(1 − ⟨s_i, e_i⟩ / max(‖s_i‖, ‖t_i‖))

    with e_i the direction of the class mean of row i's label. It is `ndfast.nd_loss`, which has
    further options for new code.

    Source: "Improving Knowledge Distillation via Regularizing Feature Direction and Norm", ECCV
    2024, arXiv 2305.17007; github.com/WangYZ1608/Knowledge-Distillation-via-ND.

    Args:
        num_class: taken for the sake of callers, and unused, as it is by the authors.
        nd_loss_factor: the loss's factor; 1.0 where neither it nor ``nd_weight`` is given.
        nd_weight: the same by the name that the authors' detection code has for it.
        backend: as in `ndfast.nd_loss`.

    Raises:
        TypeError: the factor is given by both names, or is no number.
        ValueError: ``backend`` is no backend's name.

    Examples:
        >>> nd_loss = ndfast.DirectNormLoss(num_class=100, nd_loss_factor=2.0)
        >>> loss = nd_loss(s_emb=s_emb, t_emb=t_emb, T_EMB=json.load(file), labels=labels)
    """

    def __init__(
        self,
        num_class: int = 100,
        nd_loss_factor: float | None = None,
        *,
        nd_weight: float | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if nd_loss_factor is not None and nd_weight is not None:
            raise TypeError("nd_weight: is another name of nd_loss_factor; give one of them")
        factor = nd_weight if nd_loss_factor is None else nd_loss_factor
        if factor is not None:
            check_number("nd_loss_factor", factor)
        check_backend_name(backend)
        self.num_class = num_class
        self.nd_loss_factor = 1.0 if factor is None else factor
        self.backend = backend
        self._dict_means: _DictMeans | None = None

    def forward(
        self,
        s_emb: Tensor,
        t_emb: Tensor,
        T_EMB: Mapping[str, Sequence[float]] | Tensor,
        labels: Tensor | None,
    ) -> Tensor:
        """The loss of a batch.

        A dict is made a tensor once and kept, and made one again when it holds other lists; a list
        that was changed in place is not seen. Under torch.compile give a tensor:
        `ndfast.load_class_means` reads the authors' file as one.

        Args:
            s_emb: the student's features [B, D].
            t_emb: the teacher's features [B, D].
            T_EMB: the teacher's class means: a dict from class index, as a string, to D floats (a
                list, an array or a tensor), in any order; or a tensor [K, D]; or, with
                ``labels=None``, one centre a row [B, D].
            labels: class indices [B]; a row of -100 is ignored.

        Returns:
            The loss, 0-dim, float32 (float64 for float64 features).

        Raises:
            KeyError: the dict lacks a class that occurs in ``labels``. On a GPU, where looking
                would synchronise, the loss is NaN instead.
            TypeError: an argument has a type or dtype that is not taken.
            ValueError: the dict is no dict of class means, or shapes or devices do not fit.
            IndexError: a label is out of range of the tensor (CPU).
        """
        if isinstance(T_EMB, Mapping):
            T_EMB = self._look_up(T_EMB, s_emb, labels)
        try:
            return nd_loss(
                s_emb, t_emb, T_EMB, labels, weight=self.nd_loss_factor, backend=self.backend
            )
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            message = _in_our_names(str(error))
            if message == str(error):
                raise
            raise type(error)(message) from None

    def extra_repr(self) -> str:
        return f"num_class={self.num_class}, nd_loss_factor={self.nd_loss_factor}"

    def _look_up(self, class_dict: Mapping, s_emb: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("labels: got None; that takes T_EMB as a tensor [B, D] of centres")
        for name, value in (("s_emb", s_emb), ("labels", labels)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name}: got {type(value).__name__}; expected a torch.Tensor")
        if labels.is_floating_point():
            raise TypeError(
                f"labels: got dtype {labels.dtype}; class probabilities take T_EMB as a tensor "
                "[K, D]"
            )
        means = self._dict_means
        if means is None or not means.are_of(class_dict):
            self._dict_means = means = _DictMeans(class_dict)
        if labels.device.type == "cpu":
            unknown = set(labels.flatten().tolist()) - means.classes - {_IGNORE_INDEX}
            if unknown:
                raise KeyError(f"T_EMB: holds no class {min(unknown)}, which occurs in labels")
        return means.on(s_emb.device)


def _in_our_names(message: str) -> str:
    """What `nd_loss` says of its arguments, with the names that the authors gave them."""
    return re.sub(r"\b(student|teacher|class_means|target)\b", lambda m: _NAMES[m[0]], message)


class _DictMeans:
    """The authors' dict as a tensor [K, D]: K the largest class + 1, NaN for classes it lacks."""

    def __init__(self, class_dict: Mapping[str, Sequence[float]]) -> None:
        # Holding the lists keeps their identities from being given to others.
        self._keys, self._lists = list(class_dict), list(class_dict.values())
        classes, means = stack_class_dict("T_EMB", class_dict)
        self.classes = frozenset(classes)
        with torch.inference_mode(False):  # a step in inference mode may come before training
            K, D = max(classes) + 1, means.shape[1]
            table = torch.full((K, D), torch.nan, dtype=torch.float32, device=_CPU)
            table[classes] = torch.from_numpy(means)
        self._on_device = {_CPU: table}

    def are_of(self, class_dict: Mapping[str, Sequence[float]]) -> bool:
        return self._keys == list(class_dict) and all(map(is_, self._lists, class_dict.values()))

    def on(self, device: torch.device) -> Tensor:
        if device not in self._on_device:
            with torch.inference_mode(False):
                self._on_device[device] = self._on_device[_CPU].to(device)
        return self._on_device[device]
