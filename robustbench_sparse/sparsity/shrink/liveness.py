"""Which channels of a network matter, found in its forward pass.

Two walks over the traced pass. Forwards: which channels have one value at every pixel of every image, and which.
Backwards from the logits: which channels some layer still needs. What is not understood needs everything.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from attacks.base import Silence, noise_from
from defenses.tracing import LayerTracer
from robustbench_sparse.foundation.errors import UserError, one_line

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
_FLATTENS = (torch.flatten, torch.reshape, "flatten", "view", "reshape")
_MEANS = (torch.mean, "mean")


@dataclass
class Liveness:
    """What is known of every convolution and linear layer that is understood, by its name.

    Attributes:
        needed: outputs that have to stay, bool (out,).
        read: inputs that the layer needs, bool (in,).
        constant: the value of each input that is constant, nan of the others, (in,).
    """

    needed: dict[str, Tensor] = field(default_factory=dict)
    read: dict[str, Tensor] = field(default_factory=dict)
    constant: dict[str, Tensor] = field(default_factory=dict)


class _Shapes(fx.Interpreter):
    """Runs the pass and keeps the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if isinstance(out, Tensor):
            self.shapes[n] = out.shape
        return out


def liveness(model: nn.Module, example: Tensor) -> Liveness:
    """Find what matters.

    Args:
        model: a network in eval mode.
        example: images (B, C, H, W) of its device and type; only their shape counts.

    Raises:
        UserError: the forward pass cannot be traced.
    """
    try:
        graph = LayerTracer().trace(model)
        runner = _Shapes(fx.GraphModule(model, graph))
        with torch.no_grad(), noise_from(model, Silence()):
            runner.run(example)
    except Exception as e:  # a forward pass may do anything
        raise UserError(f"the network's forward pass cannot be traced: {one_line(e)[:160]}") from None
    return _Walk(model, graph, runner.shapes).result()


class _Walk:
    def __init__(self, model: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, torch.Size]) -> None:
        self.nodes, self.shapes = list(graph.nodes), shapes
        self.modules = dict(model.named_modules())
        called = [self.modules[str(n.target)] for n in self.nodes if n.op == "call_module"]
        self.calls = Counter(called)
        self.device = next(model.parameters()).device
        # Worked out in float64, so that folding into a bias adds no rounding of its own; nan for what varies.
        self.constant: dict[fx.Node, Tensor] = {}
        self.fixed: set[fx.Node] = set()  # widths that no layer here decides upon

    def width(self, node: fx.Node) -> int | None:
        shape = self.shapes.get(node)
        return None if shape is None or len(shape) < 2 else shape[1]

    @torch.no_grad()
    def result(self) -> Liveness:
        for node in self.nodes:
            if self.width(node) is not None:
                self._forwards(node)
        self.needed = {n: self._no(n) for n in self.constant}
        self.used = {n: self._no(n) for n in self.constant}
        out = Liveness()
        for node in reversed(self.nodes):
            self._backwards(node, out)
        return out

    # What a node is -------------------------------------------------------------------------------------

    def kind(self, node: fx.Node) -> str:
        """``mix``, ``norm``, ``pointwise``, ``pool``, ``flatten``, ``add``, or an empty string for anything else."""
        if self.width(node) is None or not node.args or not isinstance(node.args[0], fx.Node):
            return ""
        first = node.args[0]
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

    @staticmethod
    def _over_pixels(node: fx.Node, before: torch.Size, after: torch.Size) -> bool:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if len(before) != 4 or not isinstance(dims, tuple | list):
            return False
        return sorted(int(d) % 4 for d in dims if isinstance(d, int)) == [2, 3]

    # Forwards: nan for what varies ----------------------------------------------------------------------

    def _forwards(self, node: fx.Node) -> None:
        kind, width = self.kind(node), self.width(node)
        assert width is not None
        if not kind:
            self.constant[node] = torch.full((width,), torch.nan, dtype=torch.float64, device=self.device)
            self.fixed.add(node)
            return
        first = node.args[0]
        assert isinstance(first, fx.Node)
        given = self.constant[first]
        if kind != "mix" and first in self.fixed:
            self.fixed.add(node)
        if kind == "mix":
            out = self._mixed(node, given)
        elif kind == "norm":
            out = self._normed(node, given)
        elif kind == "pointwise":
            out = self._function(node)(given.clone())  # nan stays nan; some work in place
        elif kind == "add":
            other = node.args[1]
            assert isinstance(other, fx.Node)
            out = given + self.constant[other]
            if other in self.fixed:
                self.fixed.add(node)
        elif kind == "flatten":
            out = given.repeat_interleave(width // len(given))
        else:
            out = given
        self.constant[node] = torch.where(out.isfinite(), out, torch.nan)

    def _function(self, node: fx.Node) -> Callable[[Tensor], Tensor]:
        if node.op == "call_module":
            module: Callable[[Tensor], Tensor] = self.modules[str(node.target)]
            return module
        return _POINTWISE_FUNCTIONS[node.target]

    def _mixed(self, node: fx.Node, given: Tensor) -> Tensor:
        layer, weight = self._layer(node)
        matters = self._matters(weight)
        known = given.isfinite()
        # The border of zeros makes an image of any other constant vary.
        steady = known if _unpadded(layer) else known & (given == 0)
        total = weight.flatten(2).sum(2) @ torch.where(steady, given, 0)
        if layer.bias is not None:
            total = total + layer.bias.double()
        return torch.where((matters & ~steady).any(1), torch.nan, total)

    def _normed(self, node: fx.Node, given: Tensor) -> Tensor:
        norm = self.modules[str(node.target)]
        assert isinstance(norm, NORMS)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        out = (given - norm.running_mean.double()) / (norm.running_var.double() + norm.eps).sqrt()
        if norm.weight is not None:
            out = torch.where(norm.weight == 0, 0.0, out * norm.weight.double())
        return out if norm.bias is None else out + norm.bias.double()

    def _layer(self, node: fx.Node) -> tuple[Mixing, Tensor]:
        layer = self.modules[str(node.target)]
        assert isinstance(layer, MIXING)
        weight = layer.weight.double()
        return layer, weight if weight.ndim == 4 else weight[..., None, None]

    @staticmethod
    def _matters(weight: Tensor) -> Tensor:
        """Which output reads which input; (out, in, k, k) -> bool (out, in)."""
        return (weight != 0).flatten(2).any(2)

    # Backwards ------------------------------------------------------------------------------------------
    # A channel is needed when it has to be there, used when its values matter as well: batch-norm with weight 0
    # needs a channel to write its shift to, whatever it gets.

    def _backwards(self, node: fx.Node, out: Liveness) -> None:
        kind = self.kind(node)
        if not kind:
            for given in node.all_input_nodes:
                self._all(given)
            self._forget(node, out)
            return
        needed, used = self.needed[node], self.used[node]
        if kind == "mix":
            needed = used = self._read(node, out)
        elif kind == "norm":
            norm = self.modules[str(node.target)]
            assert isinstance(norm, NORMS)
            used = used if norm.weight is None else used & (norm.weight != 0)
        elif kind == "flatten":
            first = node.args[0]
            assert isinstance(first, fx.Node)
            shape = (len(self.constant[first]), -1)
            needed, used = needed.view(shape).any(1), used.view(shape).any(1)
        sources = [n for n in node.args if isinstance(n, fx.Node)]
        for source in sources:
            self.needed[source] |= needed
            self.used[source] |= used
        if kind == "add" and any(source in self.fixed for source in sources):
            for source in sources:
                self.needed[source][:] = True

    def _read(self, node: fx.Node, out: Liveness) -> Tensor:
        name, first = str(node.target), node.args[0]
        assert isinstance(first, fx.Node)
        layer, weight = self._layer(node)
        given = self.constant[first]
        foldable = _unpadded(layer) and layer.bias is not None
        absorbed = given.isfinite() if foldable else given == 0
        reads = (self._matters(weight) & self.used[node][:, None]).any(0) & ~absorbed
        out.needed[name], out.read[name] = self.needed[node], reads
        # Only what the layer can take into its bias is ever folded.
        out.constant[name] = given if foldable else torch.full_like(given, torch.nan)
        return reads

    def _all(self, node: fx.Node) -> None:
        if node in self.needed:
            self.needed[node][:] = True
            self.used[node][:] = True

    def _forget(self, node: fx.Node, out: Liveness) -> None:
        """A layer that is called in a way that is not understood is left as it is."""
        if node.op == "call_module":
            for table in (out.needed, out.read, out.constant):
                table.pop(str(node.target), None)

    def _no(self, node: fx.Node) -> Tensor:
        return torch.zeros(len(self.constant[node]), dtype=torch.bool, device=self.device)


def _in_place(target: Any) -> bool:
    return target is operator.iadd or (isinstance(target, str) and target.endswith("_"))


def _unpadded(layer: Mixing) -> bool:
    return isinstance(layer, nn.Linear) or layer.padding in (0, (0, 0), "valid")
