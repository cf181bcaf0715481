"""ModuleInput: what a module of a network was given. A classifier's input is the feature."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ModuleInput:
    """Keeps what a module was given in its last call, by a forward pre-hook.

    Args:
        argument: the argument that ``name`` came by, for the error.
        network: whose module it is.
        name: the module's, as in ``network.named_modules()``.

    Raises:
        ValueError: the network has no such module.
    """

    def __init__(self, argument: str, network: nn.Module, name: str) -> None:
        try:
            module = network.get_submodule(name)
        except AttributeError:
            children = ", ".join(child for child, _ in network.named_children())
            raise ValueError(
                f"{argument}: {type(network).__name__} has no module {name!r}; its modules are "
                f"{children} and those within them"
            ) from None
        self._name = name
        self._input: Tensor | None = None
        module.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._input = args[0]

    def take(self) -> Tensor:
        """The first argument of the last call, flattened to [N, D]; it is not kept any longer.

        Raises:
            RuntimeError: the module was not called since.
        """
        if self._input is None:
            raise RuntimeError(f"module {self._name!r} was not called in the network's forward")
        features, self._input = self._input, None
        return features.flatten(1)
