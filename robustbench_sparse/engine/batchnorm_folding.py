"""Batch-norm in eval mode is an affine map: folded into the convolution before it, or one scale and one shift.

(W * x - mean) / sqrt(var + eps) * weight + bias = (s W) * x + t with s = weight / sqrt(var + eps) and
t = bias - s mean, exact but for rounding (Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from defenses.tracing import traced_nodes

Refresh = Callable[[nn.Module], None]
_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Affine(nn.Module):
    """x * scale + shift per channel, in float32, returned in the type of ``x``; (B, C, ...) -> the same shape.

    Worth it inside a compiled graph, where it melts into its neighbours and spares a root per pixel.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels, device=like.device))
        self.register_buffer("shift", torch.zeros(channels, device=like.device))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (x * self.scale.view(shape) + self.shift.view(shape)).to(x.dtype)


class Stem(nn.Module):
    """The layer that sees the image, for bfloat16: the image goes in as the sum of two bfloat16 tensors.

    A pixel near 1, rounded to bfloat16, is off by up to 0.002, as much as the smallest perturbations that fool a
    network. Upper half and rest, side by side as channels under the same weights twice, keep 16 bits of it at
    hardly more than the layer's own cost; float32 would slow ResNet-20's pass down by a sixth.

    Args:
        layer: a convolution without groups, or a linear layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """As the layer, which autocast runs in bfloat16; float64 goes through as it is."""
        layer = self.layer
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
        if x.dtype != torch.float32 or not torch.is_autocast_enabled(x.device.type):
            out: Tensor = layer(x)
            return out
        # The upper half of a float32's bits is a bfloat16. Cut off as bits, since a compiler takes the way to bfloat16
        # and back for nothing and would leave it out.
        cut = (x.detach().view(torch.int32) & -0x10000).view(torch.float32)
        low = (x.detach() - cut).bfloat16()
        # The gradient runs through one of both parts: they have the same weights.
        high = (x + (cut - x.detach())).bfloat16()
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(torch.cat((high, low), -1), layer.weight.repeat(1, 2), layer.bias)
        weight = layer.weight.repeat(1, 2, *[1] * (layer.weight.ndim - 2))
        convolved: Tensor = layer._conv_forward(torch.cat((high, low), 1), weight, layer.bias)
        return convolved


def pairs_of(model: nn.Module) -> dict[str, str]:
    """Batch-norm layers that directly follow a convolution or linear layer: name of the layer -> of the norm.

    Empty where the network's forward pass cannot be traced. A pair is safe to fold: both layers run once, and
    the first one's output goes nowhere else.
    """
    nodes = traced_nodes(model)
    modules = dict(model.named_modules())
    calls: dict[nn.Module, int] = {}
    for node in nodes:
        if node.op == "call_module":
            module = modules[str(node.target)]
            calls[module] = calls.get(module, 0) + 1
    pairs: dict[str, str] = {}
    for node in nodes:
        if node.op != "call_module" or not _is_plain(modules[str(node.target)], _NORMS):
            continue
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        first, norm = modules[str(before.target)], modules[str(node.target)]
        if _is_plain(first, _FOLDABLE) and calls[first] == calls[norm] == 1 and _keeps_statistics(norm):
            pairs[str(before.target)] = str(node.target)
    return pairs


def stems_of(model: nn.Module) -> list[str]:
    """Names of the layers that see the image itself, before any other convolution or linear layer.

    Where the network's forward pass cannot be traced: the first such layer in its list.
    """
    modules = dict(model.named_modules())
    nodes = traced_nodes(model)
    if not nodes:
        return [name for name, m in modules.items() if isinstance(m, _FOLDABLE)][:1]
    found: list[str] = []
    # Nodes come in the order in which they run; what depends on the image through no layer is marked on the way.
    raw = {node for node in nodes if node.op == "placeholder"}
    for node in nodes:
        if raw.isdisjoint(node.all_input_nodes):
            continue
        if node.op == "call_module" and isinstance(modules[str(node.target)], _FOLDABLE):
            found.append(str(node.target))
        else:
            raw.add(node)
    return list(dict.fromkeys(found))


def fold(twin: nn.Module, pairs: Mapping[str, str], affine: bool) -> Refresh:
    """Fold batch-norm layers of a copy in place.

    Args:
        twin: the copy, in eval mode.
        pairs: what ``pairs_of`` found.
        affine: turn the other batch-norm layers into ``Affine``.

    Returns:
        A function that takes the weights of a network of the original structure over into the copy.
    """
    folded: dict[str, str] = {}
    affines: list[str] = []
    for name, norm in pairs.items():
        layer = twin.get_submodule(name)
        assert isinstance(layer, _FOLDABLE)
        if layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)), requires_grad=False)
        replace_layer(twin, norm, nn.Identity())
        folded[name] = norm
    for name, module in list(twin.named_modules()):
        if affine and _is_plain(module, _NORMS) and _keeps_statistics(module):
            assert isinstance(module, _BatchNorm)
            assert module.running_mean is not None
            replace_layer(twin, name, Affine(module.num_features, module.running_mean))
            affines.append(name)
    skip = {*folded, *folded.values(), *affines}
    kept = [name for name, _ in twin.named_modules() if name not in skip]
    # Looked up once: an attack in training refreshes at every step.
    targets = {name: _tensors(twin.get_submodule(name)) for name in kept}
    layers = {name: twin.get_submodule(name) for name in [*folded, *affines]}

    @torch.no_grad()
    def refresh(source: nn.Module) -> None:
        into: list[Tensor] = []
        out_of: list[Tensor] = []
        for name in kept:
            own = _tensors(source.get_submodule(name))
            for key, target in targets[name].items():
                into.append(target)
                out_of.append(own[key])
        for name in affines:
            scale, shift = _scale_and_shift(source.get_submodule(name))
            layer = layers[name]
            assert isinstance(layer, Affine)
            into += [layer.scale, layer.shift]
            out_of += [scale, shift]
        for name, norm in folded.items():
            scale, shift = _scale_and_shift(source.get_submodule(norm))
            first, layer = source.get_submodule(name), layers[name]
            assert isinstance(first, _FOLDABLE)
            assert isinstance(layer, _FOLDABLE)
            assert layer.bias is not None
            into += [layer.weight, layer.bias]
            bias = shift if first.bias is None else shift + scale * first.bias
            out_of += [first.weight * scale.view(-1, *[1] * (first.weight.ndim - 1)), bias]
        torch._foreach_copy_(into, out_of)

    return refresh


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _is_plain(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether it is exactly such a layer, with nothing hung onto it that replaces weights or outputs."""
    hooked = module._forward_hooks or module._forward_pre_hooks or parametrize.is_parametrized(module)
    return type(module) in kinds and not hooked


def _keeps_statistics(norm: nn.Module) -> bool:
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers."""
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def replace_layer(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of another; the empty name, the network itself, has none."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
