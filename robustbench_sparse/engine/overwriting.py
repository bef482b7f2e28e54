"""Activations that write their output over their input, where nothing else reads that: a tensor less to fetch.

The numbers stay the same, bit for bit. A convolution, a linear layer and batch-norm in eval mode need their input to go
backward, never their output, and a ReLU needs its output alone.
"""

from __future__ import annotations

from torch import fx, nn

from defenses.tracing import traced_nodes

_MAKERS = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)


def overwriting_relus(model: nn.Module) -> list[str]:
    """Names of the ReLU layers that may overwrite what they are given, at every one of their calls.

    Given is then the output of a convolution, linear layer or batch-norm that nothing else reads. Empty where the
    network's forward pass cannot be traced.
    """
    modules, may = dict(model.named_modules()), dict[str, bool]()
    for node in traced_nodes(model):
        if node.op == "call_module" and _is_plain(modules[str(node.target)], (nn.ReLU,)):
            name = str(node.target)
            may[name] = may.get(name, True) and _is_alone(node, modules)
    return [name for name, fine in may.items() if fine]


def _is_alone(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether what a call is given was made by a layer for it alone."""
    given = node.args[0] if node.args else None
    if not isinstance(given, fx.Node) or given.op != "call_module" or len(given.users) != 1:
        return False
    return _is_plain(modules[str(given.target)], _MAKERS)


def _is_plain(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether it is exactly such a layer, and no hook sees what it is given or gives."""
    return type(module) in kinds and not (module._forward_hooks or module._forward_pre_hooks)
