"""Where a layer's output channels go: who normalises them, who reads them, and what a pruned one takes with it.

Read off the network's traced forward pass. Whatever is not known for certain to keep channels apart ends the
search: such channels are not prunable, and nothing is guessed.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from defenses.robust.enresnet import Noise
from defenses.tracing import traced_nodes

# The layout of a value: channels of maps (B, C, H, W), or columns (B, C * n) in which channel c has the n columns
# from c * n on; None is unknown.
Layout = Literal["map", "columns"] | None

# Modules that map every channel by itself, whatever the layout.
_APART: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softsign, nn.Identity, nn.Dropout),
    Noise,  # its strength depends on all channels, yet a channel gets none of the others' values
)
# The same for maps alone: they work along height and width.
_APART_MAPS: tuple[type[nn.Module], ...] = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout2d),
)
_APART_CALLS = (
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.softplus, F.sigmoid, F.tanh, F.dropout),
    *(torch.relu, torch.sigmoid, torch.tanh),
    *("relu", "sigmoid", "tanh", "contiguous"),  # methods
)
_APART_MAPS_CALLS = (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout2d)
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_LAYERS = (nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass
class Output:
    """Where the output channels of one layer go.

    Attributes:
        channels: how many there are.
        norms: batch-norm layers that follow it.
        readers: names of the layers that read them, and how many columns of the weight read one channel: 1,
            or height * width behind a flattened map.
        added: they are added to other channels on some path, as at the end of a residual block.
        unknown: some path ends at something else.
        bare: something but a batch-norm layer uses them as they come out of the layer.
    """

    channels: int
    norms: list[str] = field(default_factory=list)
    readers: dict[str, int] = field(default_factory=dict)
    added: bool = False
    unknown: bool = False
    bare: bool = False

    @property
    def closed(self) -> bool:
        """Every path ends at a reader: without its filter, a channel could be taken out of the network."""
        return bool(self.readers) and not self.added and not self.unknown

    @property
    def branch(self) -> bool:
        """All it does is to be added to other channels, which would live on without it."""
        return self.added and not self.readers and not self.unknown


def outputs_of(model: nn.Module) -> dict[str, Output]:
    """The outputs of convolutions, linear and batch-norm layers by name, in the order in which they run.

    Layers that run twice, share weights, have groups or carry hooks are left out. Empty where the forward pass
    cannot be traced. The weights may be on "meta".
    """
    return _Graph(model, traced_nodes(model)).outputs()


def kept_without(
    model: nn.Module, outputs: Mapping[str, Output], dead: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What is left of the parameters when channels are pruned.

    Gone are a layer's filters W[o] and biases, scale and shift of the batch-norm layers that follow, and what
    reads the channel: W[:, o], or its columns behind a flattened map.

    Args:
        model: the network.
        outputs: what ``outputs_of`` found in it.
        dead: the pruned output channels of a layer, bool (channels,), by its name.

    Returns:
        Bool tensors by parameter name, False where the parameter is to be 0; only parameters concerned.
    """
    own = dict(model.named_parameters())
    kept: dict[str, Tensor] = {}

    def prune(name: str, gone: Tensor) -> None:
        if name in own:  # a layer may have no bias, a batch-norm layer no parameters
            like = kept.get(name)
            kept[name] = torch.ones_like(own[name], dtype=torch.bool) if like is None else like
            kept[name] &= ~gone

    for layer, channels in dead.items():
        out = outputs[layer]
        for name in (layer, *out.norms):
            weight = own.get(f"{name}.weight")
            if weight is not None:
                prune(f"{name}.weight", channels.view(-1, *[1] * (weight.ndim - 1)))
            prune(f"{name}.bias", channels)
        for name, columns in out.readers.items():
            gone = channels.repeat_interleave(columns)
            prune(f"{name}.weight", gone.view(1, -1, *[1] * (own[f"{name}.weight"].ndim - 2)))
    return kept


class _Graph:
    """A traced forward pass: its nodes in the order in which they run, and what they stand for."""

    def __init__(self, model: nn.Module, nodes: list[fx.Node]) -> None:
        self.modules, self.nodes = dict(model.named_modules()), nodes
        self.calls = Counter(n.target for n in nodes if n.op == "call_module")
        owners = Counter(
            id(p) for m in self.modules.values() for p in m._parameters.values() if p is not None
        )
        self.shared = {id for id, count in owners.items() if count > 1}
        self.layouts: dict[fx.Node, Layout] = {}
        for node in nodes:
            self.layouts[node] = self._layout(node)

    def outputs(self) -> dict[str, Output]:
        """See ``outputs_of``."""
        found: dict[str, Output] = {}
        for node in self.nodes:
            module = self._layer(node)
            if module is None or self.layouts[node] is None:
                continue
            is_norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            out = Output(_widths(module)[1])
            self._follow(node, out, is_norm)
            found[str(node.target)] = out
        return found

    def _follow(self, node: fx.Node, out: Output, normed: bool) -> None:
        """Walk from a value to all that use it; ``normed``: a batch-norm layer was passed."""
        if not node.users:
            out.unknown = out.bare = True
        for user in node.users:
            module = self._layer(user)
            columns = self._columns(node, user, out.channels)
            if columns is None:
                out.added |= _is_sum(user)
                out.unknown |= not _is_sum(user)
                out.bare |= not normed
            elif module is None:
                self._follow(user, out, normed)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                out.readers[str(user.target)] = columns
                out.bare |= not normed
            elif normed:  # the second one shifts what the first has made zero
                out.unknown = True
            else:
                out.norms.append(str(user.target))
                self._follow(user, out, True)

    def _columns(self, node: fx.Node, user: fx.Node, channels: int) -> int | None:
        """Columns a channel has for what uses it, 1 for a map; None where channels are not known to stay apart."""
        before, module = self.layouts[node], self._layer(user)
        if self.layouts[user] is None or before is None or _only_input(user) is not node:
            return None
        if module is None:
            return 1  # it has a layout, so it keeps channels apart
        width = _widths(module)[0]
        if isinstance(module, nn.Linear):
            return width // channels if width % channels == 0 else None
        return 1 if width == channels else None

    def _layer(self, node: fx.Node) -> nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d | None:
        """The convolution, linear or batch-norm layer that a node calls, if it is one that can be pruned."""
        if node.op != "call_module":
            return None
        m = self.modules[str(node.target)]
        if type(m) not in (*_LAYERS, *_NORMS) or not self._plain(m) or self.calls[node.target] > 1:
            return None
        if isinstance(m, nn.Conv2d) and m.groups > 1:
            return None
        shared = any(id(p) in self.shared for p in m._parameters.values())
        assert isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d)
        return None if shared else m

    @staticmethod
    def _plain(m: nn.Module) -> bool:
        """Nothing hung onto it that replaces weights, inputs or outputs."""
        return not (m._forward_hooks or m._forward_pre_hooks or parametrize.is_parametrized(m))

    def _layout(self, node: fx.Node) -> Layout:
        """The layout of a value where it is known, and made from one value alone."""
        x = _only_input(node)
        before = None if x is None else self.layouts.get(x)
        module = self._layer(node)
        if isinstance(module, nn.Conv2d):
            return "map"
        if isinstance(module, nn.Linear | nn.BatchNorm1d):
            return "columns" if before == "columns" else None
        if isinstance(module, nn.BatchNorm2d):
            return "map" if before == "map" else None
        if node.op == "call_module":
            m = self.modules[str(node.target)]
            if not self._plain(m):
                return None
            if type(m) is nn.Flatten:
                return "columns" if (m.start_dim, m.end_dim) == (1, -1) else None
            if type(m) in _APART_MAPS:
                return "map" if before == "map" else None
            return before if type(m) in _APART else None
        if not node.op.startswith("call"):
            return None
        if _is_sum(node):
            first, second = (self.layouts[n] for n in node.all_input_nodes)
            return first if first == second else None
        if node.target in (torch.flatten, "flatten"):
            return "columns" if node.args[1:] == (1,) and not node.kwargs else None
        if node.target in (torch.mean, "mean") and before == "map":
            fine = node.args[1:] in (((2, 3),), ([2, 3],), ((-2, -1),), ([-2, -1],)) and not node.kwargs
            return "columns" if fine else None
        if node.target in _APART_MAPS_CALLS:
            return "map" if before == "map" else None
        return before if node.target in _APART_CALLS else None


def _is_sum(node: fx.Node) -> bool:
    """Whether it adds two values, as the end of a residual block does."""
    called = node.op in ("call_function", "call_method") and node.target in _SUMS
    return called and len(node.all_input_nodes) == len(node.args) == 2 and not node.kwargs


def _widths(layer: nn.Module) -> tuple[int, int]:
    """Channels that a layer takes and gives."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    return layer.num_features, layer.num_features


def _only_input(node: fx.Node) -> fx.Node | None:
    """The value a node maps, where it is its first argument and there is no other."""
    first = node.args[0] if node.args else None
    return first if isinstance(first, fx.Node) and node.all_input_nodes == [first] else None
