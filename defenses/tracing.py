"""A network's forward pass as the calls of its layers."""

from __future__ import annotations

from torch import fx, nn

from attacks.base import RandomModule


class LayerTracer(fx.Tracer):
    """Sees torch's layers and random ones, and not what happens inside them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one call."""
        return isinstance(m, RandomModule) or super().is_leaf_module(m, module_qualified_name)


def traced_nodes(model: nn.Module) -> list[fx.Node]:
    """The calls of a forward pass in the order in which they run; none where it cannot be traced."""
    try:
        return list(LayerTracer().trace(model).nodes)
    except Exception:  # a forward pass may do anything
        return []
