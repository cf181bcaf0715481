"""ClassifierInput: the features that a network's classifier was given in a call of the network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class ClassifierInput:
    """Reads what a module of a network is given, by name, while the network runs.

    It holds the name alone: outside of `read` the network has no hook, and nothing of a batch is
    kept.

    Args:
        argument: the argument that ``name`` came by, for errors.
        name: the module's, as in ``network.named_modules()``.
    """

    def __init__(self, argument: str, name: str) -> None:
        self._argument = argument
        self._name = name

    def find(self, network: nn.Module) -> nn.Module:
        """The module.

        Raises:
            ValueError: the network has no such module.
        """
        try:
            return network.get_submodule(self._name)
        except AttributeError:
            children = ", ".join(child for child, _ in network.named_children())
            raise ValueError(
                f"{self._argument}: {type(network).__name__} has no module {self._name!r}; its "
                f"modules are {children} and those within them"
            ) from None

    def read(
        self, network: nn.Module, run: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> tuple[T, Tensor]:
        """Runs the network.

        Args:
            network: whose module it is.
            run: the network, or what calls it.
            *args: of ``run``.
            **kwargs: likewise.

        Returns:
            What ``run`` returned, and the features [N, D]: the first argument of the module's last
            call, flattened.

        Raises:
            ValueError: the network has no such module.
            TypeError: the module was given no tensor.
            RuntimeError: the module was not called, or without gradients though these are enabled,
                as by activation checkpointing of the reentrant kind.
        """
        calls: list[tuple[Any, bool]] = []

        def keep(inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            calls[:] = [(_first(module, inputs, named), torch.is_grad_enabled())]

        module = self.find(network)
        with watched(module, keep):
            result = run(*args, **kwargs)
        if not calls:
            raise RuntimeError(f"module {self._name!r} was not called in the network's forward")
        ((features, with_gradient),) = calls
        if not isinstance(features, Tensor):
            raise TypeError(
                f"{self._argument}: module {self._name!r} was given {type(features).__name__}; "
                "expected a tensor of features"
            )
        if torch.is_grad_enabled() and not with_gradient and not features.requires_grad:
            raise RuntimeError(
                f"{self._argument}: module {self._name!r} ran without gradients, so that none "
                "would reach the student; checkpoint its activations with use_reentrant=False"
            )
        return result, features.flatten(1)


def classifiers_of(
    student: nn.Module, classifier: str, teacher: nn.Module, teacher_classifier: str | None
) -> tuple[ClassifierInput, ClassifierInput]:
    """Those of student and teacher; the teacher's has by default the same name.

    Raises:
        ValueError: a network has no such module, or the teacher is the student itself.
    """
    of_student = ClassifierInput("classifier", classifier)
    of_teacher = ClassifierInput("teacher_classifier", teacher_classifier or classifier)
    of_student.find(student)
    of_teacher.find(teacher)
    if teacher is student:
        raise ValueError("teacher: got the student; expected a network of its own")
    return of_student, of_teacher


@contextmanager
def watched(
    module: nn.Module, keep: Callable[[tuple[Any, ...], dict[str, Any], Any], None]
) -> Iterator[None]:
    """Has each call of a module in the block reported; after it the module is as it was.

    A forward of the instance, not a hook: compiled code is tied to whether there is such a forward,
    while code that was compiled without a hook goes on without one that is registered later
    (``torch._dynamo.config.skip_nnmodule_hook_guards``).

    Args:
        module: what is watched.
        keep: takes a call's positional arguments, its keyword arguments and what it returned.
    """
    # In __dict__: the compiler does not follow a deleted attribute.
    own, forward = module.__dict__, module.forward
    before = own.get("forward")

    def reporting(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        keep(args, kwargs, output)
        return output

    own["forward"] = reporting
    try:
        yield
    finally:
        own.pop("forward")
        if before is not None:
            own["forward"] = before


def _first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument for the first parameter of the module's forward."""
    if args:
        return args[0]
    parameters = inspect.signature(type(module).forward).parameters
    return next((kwargs[name] for name in parameters if name in kwargs), None)
