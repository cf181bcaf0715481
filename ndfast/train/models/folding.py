"""Batch normalisation folded into the convolutions before it, for networks that only evaluate."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_PAIRS = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d}


def fold_batch_norms(network: nn.Module) -> None:
    """Folds, in place, each nn.BatchNorm of a network that only its convolution feeds.

    In evaluation it is an affine map of each channel, which the convolution's weight and bias can
    take over: the same function but for rounding, and a pass over the maps less. Subclasses, such
    as timm's that hold an activation, stay as they are; and so does a network whose graph depends
    on its data, so that torch.fx cannot follow it.
    """
    try:
        graph = fx.symbolic_trace(network).graph
    except Exception:  # whatever a network's own code makes of fx's stand-ins for tensors
        return
    named = [*network.named_modules(remove_duplicate=False)]
    modules, names = dict(named), Counter(id(module) for _, module in named)
    calls = [node for node in graph.nodes if node.op == "call_module"]
    uses = Counter(id(modules[node.target]) for node in calls)
    # Whose weights are read beside the call, as by a function.
    read = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in calls:
        norm, before = modules[node.target], node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        convolution = modules[before.target]
        if _PAIRS.get(type(convolution)) is not type(norm) or norm.running_mean is None:
            continue
        if read & {before.target, node.target} or len(before.users) > 1:
            continue
        if all(uses[id(part)] == names[id(part)] == 1 for part in (convolution, norm)):
            network.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            network.set_submodule(str(node.target), nn.Identity())
