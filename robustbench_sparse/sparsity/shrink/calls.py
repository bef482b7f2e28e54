"""What the calls of a traced forward pass are, as far as removing channels goes."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

Mixing = nn.Conv2d | nn.Linear
MIXING = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_POINTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.ELU, nn.GELU, nn.Softplus, nn.LeakyReLU, nn.SiLU),
    *(nn.Identity, nn.Dropout, nn.Dropout2d),
)
_POOLS = (nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POINTWISE_FUNCTIONS: dict[Any, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys((torch.relu, F.relu, "relu", "relu_"), torch.relu),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), torch.sigmoid),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), torch.tanh),
}
_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_SKIPS = (torch.addcmul, "addcmul")
_CATS = (torch.cat, torch.concat, torch.concatenate)
_FLATTENS = (torch.flatten, torch.reshape, "flatten", "view", "reshape")
_MEANS = (torch.mean, "mean")


class Calls:
    """A traced pass, its layers, and the shape of every tensor in it."""

    def __init__(self, model: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, torch.Size]) -> None:
        self.model, self.nodes, self.shapes = model, list(graph.nodes), shapes
        self.modules = dict(model.named_modules())
        called = [self.modules[str(n.target)] for n in self.nodes if n.op == "call_module"]
        self.calls = Counter(called)

    def width(self, node: fx.Node) -> int | None:
        """Channels of a tensor (B, channels, ...); None for what is none."""
        shape = self.shapes.get(node)
        return None if shape is None or len(shape) < 2 else shape[1]

    def given(self, node: fx.Node) -> list[fx.Node]:
        """The tensors with channels that a call of a known kind works on, in order; one may be there twice."""
        args = node.args[0] if node.target in _CATS else node.args
        assert isinstance(args, list | tuple)
        return [n for n in args if isinstance(n, fx.Node) and self.width(n) is not None]

    def kind(self, node: fx.Node) -> str:
        """What is understood of a call; an empty string for anything else.

        ``mix``, ``norm``, ``pointwise``, ``pool``, ``flatten``; ``add``, ``skip`` for a + scalar * b, and ``cat`` for
        channels behind each other.
        """
        if self.width(node) is None or not node.args:
            return ""
        if node.target in _CATS:
            return "cat" if self._side_by_side(node) else ""
        first = node.args[0]
        if not isinstance(first, fx.Node):
            return ""
        if self.width(first) is None:
            return ""
        if node.op == "call_module":
            return self._kind_of_module(self.modules[str(node.target)], first)
        if node.op not in ("call_function", "call_method"):
            return ""
        before, after = self.shapes[first], self.shapes[node]
        if _in_place(node.target) and len(first.users) > 1:
            return ""
        if node.target in _ADDS:
            other = node.args[1] if len(node.args) == 2 and not node.kwargs else None
            same = isinstance(other, fx.Node) and self.shapes.get(other) == before
            return "add" if same else ""
        if node.target in _SKIPS:
            known = len(node.args) == 3 and not node.kwargs and self.factor(node.args[2]) is not None
            return "skip" if known and self.shapes.get(node.args[1]) == before == after else ""  # type: ignore[arg-type]
        if node.target in _POINTWISE_FUNCTIONS:
            return "pointwise"
        if node.target in _MEANS:
            return "pool" if self._over_pixels(node, before, after) else ""
        flat = len(before) == 4 and tuple(after) == (before[0], math.prod(before[1:]))
        return "flatten" if node.target in _FLATTENS and flat else ""

    def _kind_of_module(self, module: nn.Module, first: fx.Node) -> str:
        hooked = module._forward_hooks or module._forward_pre_hooks or parametrize.is_parametrized(module)
        if hooked or module.training:
            return ""
        kind, dims = type(module), len(self.shapes[first])
        if isinstance(module, MIXING) and kind in MIXING:
            plain = dims == 2 if isinstance(module, nn.Linear) else module.groups == 1
            return "mix" if plain and self.calls[module] == 1 else ""
        if isinstance(module, NORMS):
            return "norm" if module.running_mean is not None and self.calls[module] == 1 else ""
        if kind in _POINTWISE_MODULES:
            # One that works in place changes what others read of its input.
            return "" if getattr(module, "inplace", False) and len(first.users) > 1 else "pointwise"
        if kind in _POOLS and dims == 4:
            return "pool"
        if isinstance(module, nn.AvgPool2d):
            return "pool" if module.padding in (0, (0, 0)) and module.divisor_override is None else ""
        plain = isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) in (
            (1, -1),
            (1, dims - 1),
        )
        return "flatten" if plain and dims == 4 else ""

    def _side_by_side(self, node: fx.Node) -> bool:
        """Whether images or features are put together along their channels, and nothing else."""
        parts = node.args[0]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(parts, list | tuple) or dim != 1 or set(node.kwargs) - {"dim"}:
            return False
        widths = [self.width(part) for part in parts if isinstance(part, fx.Node)]
        return len(widths) == len(parts) and None not in widths

    def factor(self, node: Any) -> float | None:
        """The value of a scalar parameter or buffer, or of one entry of such a vector; None for anything else."""
        place: int | None = None
        if isinstance(node, fx.Node) and node.target is operator.getitem:
            node, place = node.args[0], node.args[1] if isinstance(node.args[1], int) else None
            if place is None:
                return None
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        value: Any = self.model
        for name in str(node.target).split("."):
            value = getattr(value, name)
        value = value[place] if place is not None and value.ndim == 1 else value
        return float(value) if value.numel() == 1 and value.ndim <= 1 else None

    @staticmethod
    def _over_pixels(node: fx.Node, before: torch.Size, after: torch.Size) -> bool:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if len(before) != 4 or not isinstance(dims, tuple | list):
            return False
        return sorted(int(d) % 4 for d in dims if isinstance(d, int)) == [2, 3]


def function_of(calls: Calls, node: fx.Node) -> Callable[[Tensor], Tensor]:
    """What a call of the kind ``pointwise`` does to every value."""
    if node.op == "call_module":
        module: Callable[[Tensor], Tensor] = calls.modules[str(node.target)]
        return module
    return _POINTWISE_FUNCTIONS[node.target]


def _in_place(target: Any) -> bool:
    return target is operator.iadd or (isinstance(target, str) and target.endswith("_"))


def unpadded(layer: Mixing) -> bool:
    """Whether a constant image stays constant: no border of zeros is added."""
    return isinstance(layer, nn.Linear) or layer.padding in (0, (0, 0), "valid")
