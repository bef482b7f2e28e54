"""Which channels of a network matter, found in its forward pass.

Two walks over the traced pass. Forwards: which channels have one value at every pixel of every image, and which.
Backwards from the logits: which channels some layer still needs. What is not understood needs everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from attacks.base import Silence, noise_from
from defenses.tracing import LayerTracer
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.sparsity.shrink.calls import MIXING, NORMS, Calls, Mixing, function_of, unpadded
from robustbench_sparse.sparsity.shrink.identity import channels_of


@dataclass
class Liveness:
    """What is known of every convolution and linear layer that is understood, by its name.

    Attributes:
        needed: outputs that have to stay, bool (out,).
        read: inputs that the layer needs, bool (in,).
        constant: the value of each input that is constant, nan of the others, (in,).
        channels: see ``identity.channels_of``.
    """

    needed: dict[str, Tensor] = field(default_factory=dict)
    read: dict[str, Tensor] = field(default_factory=dict)
    constant: dict[str, Tensor] = field(default_factory=dict)
    channels: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


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
    except (Exception, SystemExit) as e:  # a forward pass may do anything
        raise UserError(f"the network's forward pass cannot be traced: {one_line(e)[:160]}") from None
    return _Walk(model, graph, runner.shapes).result()


class _Walk(Calls):
    def __init__(self, model: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, torch.Size]) -> None:
        super().__init__(model, graph, shapes)
        self.device = next(model.parameters()).device
        # Worked out in float64, so that folding into a bias adds no rounding of its own; nan for what varies.
        self.constant: dict[fx.Node, Tensor] = {}
        self.fixed: set[fx.Node] = set()  # widths that no layer here decides upon

    @torch.no_grad()
    def result(self) -> Liveness:
        for node in self.nodes:
            if self.width(node) is not None:
                self._forwards(node)
        self.needed = {n: self._no(n) for n in self.constant}
        self.used = {n: self._no(n) for n in self.constant}
        out = Liveness(channels=channels_of(self))
        for node in reversed(self.nodes):
            self._backwards(node, out)
        return out

    # Forwards: nan for what varies ----------------------------------------------------------------------

    def _forwards(self, node: fx.Node) -> None:
        kind, width = self.kind(node), self.width(node)
        assert width is not None
        if not kind:
            self.constant[node] = torch.full((width,), torch.nan, dtype=torch.float64, device=self.device)
            self.fixed.add(node)
            return
        parts = self.given(node)
        if kind != "mix" and any(part in self.fixed for part in parts):
            self.fixed.add(node)
        given = self.constant[parts[0]]
        if kind == "mix":
            out = self._mixed(node, given)
        elif kind == "norm":
            out = self._normed(node, given)
        elif kind == "pointwise":
            out = function_of(self, node)(given.clone())  # nan stays nan; some work in place
        elif kind in ("add", "skip"):
            factor = self._factor(node)
            out = given + factor * self.constant[parts[1]] if factor else given
        elif kind == "cat":
            out = torch.cat([self.constant[part] for part in parts])
        elif kind == "flatten":
            out = given.repeat_interleave(width // len(given))
        else:
            out = given
        self.constant[node] = torch.where(out.isfinite(), out, torch.nan)

    def _factor(self, node: fx.Node) -> float:
        """What the second summand is multiplied by; 1 where the kind is ``add``."""
        factor = self.factor(node.args[2]) if len(node.args) == 3 else 1.0
        assert factor is not None
        return factor

    def _mixed(self, node: fx.Node, given: Tensor) -> Tensor:
        layer, weight = self._layer(node)
        matters = self._matters(weight)
        known = given.isfinite()
        # The border of zeros makes an image of any other constant vary.
        steady = known if unpadded(layer) else known & (given == 0)
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
        parts = self.given(node)
        if kind == "flatten":
            shape = (len(self.constant[parts[0]]), -1)
            needed, used = needed.view(shape).any(1), used.view(shape).any(1)
        wanted = [(needed, used)] * len(parts)
        if kind == "skip" and not self._factor(node):
            wanted[1] = needed, torch.zeros_like(used)
        elif kind == "cat":
            widths = [len(self.constant[part]) for part in parts]
            wanted = list(zip(torch.split(needed, widths), torch.split(used, widths), strict=True))
        for part, (its_needed, its_used) in zip(parts, wanted, strict=True):
            self.needed[part] |= its_needed
            self.used[part] |= its_used
        if kind in ("add", "skip") and any(part in self.fixed for part in parts):
            for part in parts:
                self.needed[part][:] = True

    def _read(self, node: fx.Node, out: Liveness) -> Tensor:
        name, first = str(node.target), node.args[0]
        assert isinstance(first, fx.Node)
        layer, weight = self._layer(node)
        given = self.constant[first]
        foldable = unpadded(layer) and layer.bias is not None
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
